"""Alphas in the header of a file, where diffusers and peft keep them instead of beside the tensors.

"lora_adapter_metadata": {"unet.r": 8, "unet.lora_alpha": 4, "unet.alpha_pattern": {"conv_in": 2}, ...}
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite, sqrt
from typing import Any

from stillmotion.checkpoints.lora.lora_layers import DOTTED, diffusers_layer
from stillmotion.errors import Damaged
from stillmotion.foreign import parse_json
from stillmotion.lora.deltas import LayerDelta

KEY = "lora_adapter_metadata"
WITHOUT = "stillmotion.without_alpha"
"""Layers that have no alpha, in a file where others have one: peft knows no such difference."""


LONGEST_PATTERN = 400
REPEATS = 4
"""Repetitions in one pattern for names of layers: the time for a match grows with their power."""
_REPEATS = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")


@dataclass(frozen=True)
class Alpha:
    """What a header or config tells of one layer: alpha, rank, and whether it is rank-stabilised (rsLoRA)."""

    alpha: float
    rank: float
    rslora: bool = False

    def scale(self, rank: float) -> float:
        """peft's scale of the change: alpha / rank, or alpha / sqrt(rank)."""
        return self.alpha / (sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class Alphas:
    """What a header tells of alphas, by diffusers' names of the layers."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    without: frozenset[str] = frozenset()

    def of(self, part: str, path: str) -> Alpha | None:
        """The alpha of a layer; None where the header says nothing of it."""
        layer = diffusers_layer(part, path) if self.settings else ""
        start = next((start for start in DOTTED if layer.startswith(start)), "")
        key = next((f"{start}{k}" for k in ("lora_alpha", "alpha") if f"{start}{k}" in self.settings), None)
        if layer in self.without or key is None:
            return None
        path = layer.removeprefix(start)
        alpha = self._of_layer(path, f"{start}alpha_pattern", key)
        rank = self._of_layer(path, f"{start}rank_pattern", f"{start}r")
        if rank <= 0:
            raise Damaged(f"{KEY} gives the layer {path} the rank {rank:g}; it should be at least 1.")
        return Alpha(alpha, rank, bool(self.settings.get(f"{start}use_rslora")))

    def scales_inputs(self, part: str, path: str) -> bool:
        """Whether (IA)^3 scales the inputs of this layer: peft's feedforward_modules."""
        layer = diffusers_layer(part, path) if self.settings else ""
        start = next((start for start in DOTTED if layer.startswith(start)), "")
        named = self.settings.get(f"{start}feedforward_modules") or ()
        try:
            if isinstance(named, str):
                return _pattern(named).fullmatch(layer.removeprefix(start)) is not None
            return layer.endswith(tuple(map(str, named)))
        except (TypeError, ValueError) as error:
            raise Damaged(f"Its feedforward_modules cannot be used ({error}).") from error

    def _of_layer(self, path: str, patterns: str, otherwise: str) -> float:
        """peft's rule: the first pattern that the path ends with, else the value for all."""
        try:
            for pattern, value in (self.settings.get(patterns) or {}).items():
                if _pattern(rf"(.*\.)?({pattern})$").match(path):
                    return _finite(value)
            return _finite(self.settings.get(otherwise, 1))
        except (AttributeError, TypeError, ValueError) as error:
            raise Damaged(
                f"Its {KEY} has {patterns} or {otherwise} that cannot be used ({error})."
            ) from error


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    """A compiled pattern; ValueError for what is none, or could take for ever to match a path."""
    if len(text) > LONGEST_PATTERN or _REPEATED_GROUP.search(text) or len(_REPEATS.findall(text)) > REPEATS:
        raise ValueError(f"the pattern {text[:60]!r} repeats too much")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern {text[:60]!r} is none: {error}") from error


def _finite(value: Any) -> float:
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{value} is no number to scale a change by")
    return number


def alphas_in(metadata: Mapping[str, str]) -> Alphas:
    """What the strings in a file's header tell; Damaged if they cannot be read."""
    if KEY not in metadata:
        return Alphas()
    try:
        settings, without = parse_json(metadata[KEY]), parse_json(metadata.get(WITHOUT, "[]"))
    except ValueError as error:
        raise Damaged(f"The file's {KEY} cannot be read as JSON ({error}).") from error
    if not isinstance(settings, dict) or not isinstance(without, list):
        raise Damaged(f"The file's {KEY} holds a {type(settings).__name__}, not named settings.")
    return Alphas(settings, frozenset(map(str, without)))


def with_alphas(parts: Mapping[str, Mapping[str, LayerDelta]], metadata: dict[str, str]) -> dict[str, str]:
    """`metadata` with the alphas of these layers as diffusers reads them; as it was if no layer has one."""
    layers = {diffusers_layer(part, path): f for part, paths in parts.items() for path, f in paths.items()}
    without = [layer for layer, delta in layers.items() if delta.alpha is None]
    if len(without) == len(layers):
        return metadata
    settings: dict[str, Any] = {}
    for start in DOTTED:
        own = {_short(name, start): f for name, f in layers.items() if name.startswith(start)}
        settings |= {f"{start}{key}": value for key, value in _config(own).items()} if own else {}
    written = metadata | {KEY: json.dumps(settings, sort_keys=True)}
    return written | ({WITHOUT: json.dumps(without)} if without else {})


def _short(layer: str, start: str) -> str:
    """peft takes ends of paths: without `text_model.` they fit text encoders of every transformers."""
    return layer.removeprefix(start).removeprefix("text_model.")


def _config(layers: Mapping[str, LayerDelta]) -> dict[str, Any]:
    """The peft LoraConfig of these layers; alpha is the rank where there is none, which means the same."""
    ranks = {path: delta.rank for path, delta in layers.items()}
    alphas = {path: ranks[path] if f.alpha is None else f.alpha for path, f in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
        "use_dora": any(delta.magnitude is not None for delta in layers.values()),
    }
