"""The tensors of one layer in a file -> LayerDelta: what different programs write, brought to one form."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stillmotion.checkpoints.lora.alphas import Alpha
from stillmotion.errors import Damaged
from stillmotion.lora.deltas import Algorithm, LayerDelta

Role = tuple[Algorithm | None, str]

SCALED: dict[str, tuple[str, ...]] = {
    "lora": ("up",),
    "loha": ("w1_a",),
    "lokr": ("w1", "w1_a"),
    "glora": ("a2", "b2"),
    "full": ("diff",),
    "norm": ("diff",),
}
"""Tensors that a factor for the whole change is multiplied into: the first that is there, of glora both."""


def factors_of(path: str, tensors: Mapping[Role, Tensor], told: Alpha | None) -> LayerDelta:
    """The change of the layer `path`; `told` is the alpha in the file's header or config, if it has one.

    Damaged for a layer that lacks a tensor, has tensors of two algorithms or an alpha that is no number.
    """
    algorithms: set[Algorithm] = {algorithm for algorithm, _ in tensors if algorithm}
    if not algorithms and (None, "bias") in tensors:
        algorithms = {"full"}
    if not algorithms and (None, "whole_bias") in tensors:
        algorithms = {"whole"}
    if len(algorithms) != 1:
        found = " and ".join(sorted(algorithms)) or "no tensors of a change"
        raise Damaged(f"The layer {path} has {found}: the file is not complete, or two are mixed.")
    algorithm = algorithms.pop()
    own, magnitude = tensors.get((None, "alpha")), tensors.get((None, "magnitude"))
    if (peft := tensors.get((None, "peft magnitude"))) is not None:
        magnitude = peft.flatten().view(-1, *[1] * (max(peft.ndim, 2) - 1))
    changes = {name: t for (kind, name), t in tensors.items() if kind or name in ("bias", "whole_bias")}
    algorithm, changes = _one_form(algorithm, changes)
    if (scalar := tensors.get((None, "scalar"))) is not None:
        changes = _scaled(algorithm, changes, _number(path, "scalar", scalar))
    try:
        delta = LayerDelta(algorithm, changes, None, magnitude)
    except Damaged as error:
        raise Damaged(f"{path}: {error}") from None
    if own is not None:  # as kohya and LyCORIS read it, 0 is no alpha
        return _with_alpha(delta, _number(path, "alpha", own) or None)
    if told is None:
        return delta
    if delta.rank is None:
        scaled = _scaled(algorithm, changes, told.scale(told.rank)) if algorithm in SCALED else changes
        return LayerDelta(algorithm, scaled, None, magnitude)
    return _with_alpha(delta, told.scale(delta.rank) * delta.rank)


def _one_form(algorithm: Algorithm, t: dict[str, Tensor]) -> tuple[Algorithm, dict[str, Tensor]]:
    """AdaLoRA as LoRA, the old GLoRA as the new, peft's (IA)^3 with its side, BOFT told from OFT."""
    if (ranks := t.pop("AdaLoRA's weights of the ranks", None)) is not None and "down" in t:
        t["down"] = t["down"] * (ranks * (len(ranks) / (len(ranks) + 1e-5)))  # peft divides by rank + 1e-5
    if algorithm == "glora" and t.keys() >= {"a1", "a2", "b1", "b2"} and len(t["b2"]) != t["b1"].shape[1]:
        t |= {"a1": t["a2"], "a2": t["a1"], "b1": t["b2"], "b2": t["b1"]}
    if algorithm in ("oft", "boft") and "blocks" in t:  # one name for both in files
        algorithm = "boft" if t["blocks"].ndim == 4 else "oft"
    return algorithm, t


def _scaled(algorithm: Algorithm, t: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    names = [name for name in SCALED.get(algorithm, ()) if name in t]
    names = names if algorithm == "glora" else names[:1]
    return {name: tensor * factor if name in names else tensor for name, tensor in t.items()}


def _with_alpha(delta: LayerDelta, alpha: float | None) -> LayerDelta:
    return LayerDelta(delta.algorithm, delta.tensors, alpha, delta.magnitude)


def _number(path: str, what: str, tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise Damaged(f"{path}: {what} should be one number, but has the size {tuple(tensor.shape)}.")
    number = float(tensor)
    if number != number or abs(number) == float("inf"):
        raise Damaged(f"{path}: {what} is {number}, which is no number to scale a change by.")
    return number
