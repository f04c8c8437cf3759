"""Which row of the table of families a set of motion shapes is.

Two families can have the same keys and shapes (v2, Lightning and AnimateLCM's diffusers adapter). Then the
name of the file decides, and a note says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from stillmotion.checkpoints.motion_keys import MODULE, Layout
from stillmotion.errors import Damaged, Mismatch, RequestError, UnknownFile
from stillmotion.foreign import parse_json
from stillmotion.motion.config import MotionConfig
from stillmotion.motion.families import COLUMNS, FAMILIES, UNKNOWN, MotionFamily, known_families
from stillmotion.request.aliases import MOTION_CONFIG

Shape = tuple[int, ...]
METADATA_KEY = "stillmotion"
"""Key in a safetensors header under which we keep the whole family of a motion model, as JSON."""

UNWRITTEN = replace(UNKNOWN, config=MotionConfig("custom"))
"""What a column has that the metadata of a file does not name."""

UNSAID_SIZE = (512, 512)
"""What headers before 0.2 have where nothing was said of the size."""

FRACTIONS = ("beta_start", "beta_end", "noise_alpha", "guidance_scale", "fps")
"""Columns that may be fractions."""


@dataclass(frozen=True)
class MotionShapes:
    """What the canonical shapes of a file (positional tables included) say by themselves."""

    down: tuple[tuple[int, ...], ...]
    mid: bool
    up: tuple[tuple[int, ...], ...]
    positions: int | None
    attentions: int
    conv_in: int | None
    layout: Layout
    whole_unet: bool
    hint: str
    """the name of the file, in lower case"""

    @property
    def channels(self) -> Shape:
        return tuple(block[0] for block in self.down)


@dataclass(frozen=True)
class Rule:
    """A row of the table below: the family, when it is taken, and what is worth knowing about the choice."""

    family: str
    when: Callable[[MotionShapes], bool]
    note: str = ""


_SD15 = (FAMILIES["sd15-v2"].config.channels, FAMILIES["sd15-v2"].config.layers)
_SDXL = (FAMILIES["sdxl-beta"].config.channels, FAMILIES["sdxl-beta"].config.layers)


def _sd15(m: MotionShapes) -> bool:
    return (m.channels, tuple(map(len, m.down))) == _SD15


def _sdxl(m: MotionShapes) -> bool:
    return (m.channels, tuple(map(len, m.down))) == _SDXL


_BY_NAME = (
    "v2, Lightning and AnimateLCM adapters have the same keys; taken for {} because of the file's name."
)
_PIA = "PIA animates a given image: its first convolution is kept, but text-to-video makes no use of it yet."
_LONG = (
    "Its tables are longer than those of v2: taken for a v2 module trained on longer clips (LongAnimateDiff, "
    "or a fine-tune). If it is AnimateLCM, keep `lcm` in the file's name."
)
_NO_TABLE = "No positional tables are stored, so v1 and v3 look alike; taken for v3."

RULES = (
    Rule("hotshot-xl", lambda m: _sdxl(m) and m.layout == "hotshot"),
    Rule("hotshot-xl", lambda m: _sdxl(m) and m.positions == 24),
    Rule("sdxl-beta", _sdxl),
    Rule("pia", lambda m: _sd15(m) and m.conv_in == 9, _PIA),
    Rule("sd15-v2", lambda m: _sd15(m) and m.mid and m.positions is None and m.whole_unet),
    Rule("animatelcm", lambda m: _sd15(m) and m.mid and m.positions is None),
    Rule("animatelcm", lambda m: _sd15(m) and m.mid and "lcm" in m.hint, _BY_NAME.format("AnimateLCM")),
    Rule("lightning", lambda m: _sd15(m) and m.mid and "lightning" in m.hint, _BY_NAME.format("Lightning")),
    Rule("sd15-v2", lambda m: _sd15(m) and m.mid and (m.positions or 0) > 32, _LONG),
    Rule(
        "sd15-v2",
        lambda m: _sd15(m) and m.mid,
        "Lightning files have the same keys as v2: if it is one, keep `lightning` in the file's name.",
    ),
    Rule("sd15-v1", lambda m: _sd15(m) and m.positions == 24),
    Rule("sd15-v3", lambda m: _sd15(m) and m.positions is None, _NO_TABLE),
    Rule("sd15-v3", _sd15),
)
"""In order of preference. v1 and v3 differ in nothing but the length of their tables, 24 and 32."""


def measure(
    shapes: Mapping[str, Shape], layout: Layout, *, whole_unet: bool = False, hint: str = ""
) -> MotionShapes:
    """Widths, positions and extras of canonical motion shapes; `UnknownFile` if modules are missing."""
    widths: dict[str, dict[int, int]] = {}
    positions, attentions = None, 1
    for name, shape in shapes.items():
        found = MODULE.fullmatch(name)
        if not found:
            continue
        if found["rest"] == "temporal_transformer.norm.weight":
            if len(shape) != 1 or not shape[0]:
                raise Damaged(f"{name} is {shape}; a norm of a motion module has one number per channel.")
            widths.setdefault(found["block"], {})[int(found["j"])] = shape[0]
        if name.endswith(".pos_encoder.pe") and len(shape) == 3:
            positions = shape[1]
        if ".attention_blocks.1." in name:
            attentions = 2
    conv_in = shapes.get("conv_in.weight")
    if not any(block.startswith("down_blocks.") for block in widths):
        raise UnknownFile("Motion modules are missing in down_blocks.0: the file is not complete.")
    return MotionShapes(
        down=_blocks(widths, "down_blocks"),
        mid="mid_block" in widths,
        up=_blocks(widths, "up_blocks"),
        positions=positions,
        attentions=attentions,
        conv_in=conv_in[1] if conv_in and len(conv_in) == 4 else None,
        layout=layout,
        whole_unet=whole_unet,
        hint=hint.lower(),
    )


def family_of(
    measured: MotionShapes, config: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[MotionFamily, list[str]]:
    """The family of a motion file and notes on how sure that is.

    What the file says of itself goes first (our metadata, a diffusers config), then the table of rules.
    """
    if METADATA_KEY in metadata:
        return _divisible(_agreeing(family_from_json(metadata[METADATA_KEY]), measured)), []
    rule = next((rule for rule in RULES if rule.when(measured)), None)
    row = FAMILIES[rule.family] if rule else _row_of_shape(measured)
    notes = [rule.note] if rule and rule.note else []
    found = row.updated(
        channels=measured.channels,
        layers=tuple(map(len, measured.down)),
        mid=measured.mid,
        attentions=measured.attentions,
        positions=measured.positions or row.config.positions,
        conv_in=measured.conv_in,
    )
    if found.config.down_widths != measured.down:
        raise UnknownFile(f"Motion modules of mixed widths in one down block are not known: {measured.down}.")
    if found.config.up_widths != measured.up:
        found = found.updated(up=measured.up)
    if row.name == "lightning" and (steps := re.search(r"(\d)-?step", measured.hint)):
        found = found.updated(num_inference_steps=int(steps.group(1)))
    if config:
        columns = _config_columns(config, len(found.config.channels))
        return _divisible(checked(found.updated(**columns))), notes
    if row.name == UNKNOWN.name:
        shape = found.config
        notes.append(
            f"Heads ({shape.heads[0]}) and norm groups ({shape.norm_groups}) are not in the file: assumed."
        )
    return found, notes


def family_to_json(family: MotionFamily) -> str:
    """All columns of a family; the inverse of `family_from_json`."""
    return json.dumps(family.columns())


def family_from_json(text: str) -> MotionFamily:
    """A family from our metadata; columns that this version does not know are an error."""
    try:
        columns = parse_json(text)
    except ValueError as error:
        raise Damaged(f"The stillmotion metadata of this file cannot be read ({error}).") from error
    if not isinstance(columns, dict) or not isinstance(columns.get("name"), str):
        raise Damaged("The stillmotion metadata of this file cannot be read (it names no family of motion).")
    columns = MOTION_CONFIG.updated(columns)
    unknown = sorted(set(columns) - COLUMNS)
    if unknown:
        raise Mismatch(
            f"This file was written by another version of stillmotion: unknown {', '.join(unknown)[:200]}."
        )
    if nulls := [name for name, value in columns.items() if value is None and name not in ("conv_in", "up")]:
        raise Damaged(f"This motion file has {nulls[0]} = None, which no motion model has.")
    if columns.get("base") == UNKNOWN.base and (columns.get("width"), columns.get("height")) == UNSAID_SIZE:
        del columns["width"], columns["height"]
    try:
        return checked(UNWRITTEN.updated(**{name: _tuples(value) for name, value in columns.items()}))
    except RequestError as error:
        raise Damaged(f"The stillmotion metadata of this file cannot be used: {error}") from error


def checked(family: MotionFamily) -> MotionFamily:
    """The family, if every column has the type and range of a motion model; else `Damaged` names it."""
    ranges: dict[str, tuple[float, float]] = {
        "positions": (1, 65_536),
        "norm_groups": (1, 65_536),
        "attentions": (1, 2),
        "beta_start": (0, 1),
        "beta_end": (0, 1),
        "noise_alpha": (0, 100),
        "num_inference_steps": (1, 1000),
        "guidance_scale": (0, 1000),
        "frames": (1, 65_536),
        "fps": (0.01, 1000),
        "width": (8, 65_536),
        "height": (8, 65_536),
    }
    words = {"resnet_norm": ("per-frame", "pooled"), "motion_norm": ("per-frame", "pooled")}
    shape = family.config
    for name, value in family.columns().items():
        whole = type(value) is int and 0 < value <= 2**20
        if name in ("channels", "layers", "heads"):
            most = 64 if name == "layers" else 2**20
            good = _counts(value, most) and len(value) == len(shape.channels) and len(value) <= 16
        elif name in ranges:
            low, high = ranges[name]
            kinds = (int, float) if name in FRACTIONS else (int,)
            good = type(value) in kinds and low <= value <= high
        elif name == "conv_in":
            good = value is None or whole
        elif name == "up":
            good = value is None or (isinstance(value, tuple) and all(_counts(row) for row in value))
        elif name == "mid":
            good = isinstance(value, bool)
        else:
            good = isinstance(value, str) and len(value) < 200 and value in words.get(name, (value,))
        if not good:
            raise Damaged(f"This motion file has {name} = {repr(value)[:80]}, which no motion model has.")
    return family


def _divisible(family: MotionFamily) -> MotionFamily:
    shape = family.config
    for channels, heads in zip(shape.channels, shape.heads, strict=True):
        if channels % heads or channels % shape.norm_groups:
            raise Damaged(
                f"This motion file has {heads} heads and {shape.norm_groups} norm groups; "
                f"{channels} channels cannot be divided by both."
            )
    return family


def _counts(value: Any, most: int = 2**20) -> bool:
    return isinstance(value, tuple) and all(type(each) is int and 0 < each <= most for each in value)


def adapter_config(spec: MotionConfig) -> dict[str, Any]:
    """The config.json of the diffusers MotionAdapter that holds this spec; `Mismatch` if none can."""
    if spec.up is not None:
        raise Mismatch(
            f"A diffusers MotionAdapter mirrors its up path, but these modules are {spec.shape}. "
            "Save them as one .safetensors file instead."
        )
    if spec.attentions != 2:
        raise Mismatch("A diffusers MotionAdapter has two attentions per module; these have one.")
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": list(spec.channels),
        "conv_in_channels": spec.conv_in,
        "motion_layers_per_block": _one_or_all(spec.layers),
        "motion_max_seq_length": spec.positions,
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": spec.norm_groups,
        "motion_num_attention_heads": _one_or_all(spec.heads),
        "motion_transformer_layers_per_block": 1,
        "motion_transformer_layers_per_mid_block": 1,
        "use_motion_mid_block": spec.mid,
    }


def family_from_adapter_config(config: Mapping[str, Any], name: str = "custom") -> MotionFamily:
    """The family a MotionAdapter config describes (old ones too), by the rules of `family_of`."""
    channels = _per_block(config.get("block_out_channels", FAMILIES["sd15-v2"].config.channels), 1)
    layers = _per_block(config.get("motion_layers_per_block", 2), len(channels))
    mid = bool(config.get("use_motion_mid_block", True))
    if not (channels and _counts(channels) and _counts(layers, 64) and len(layers) == len(channels)):
        raise Damaged(
            f"{name} has a config of {channels} channels in {layers} layers: no motion model has it."
        )
    shape = tuple((c,) * n for c, n in zip(channels, layers, strict=True))
    measured = MotionShapes(
        down=shape,
        mid=mid,
        up=tuple((c,) * (n + 1) for c, n in zip(channels[::-1], layers[::-1], strict=True)),
        positions=config.get("motion_max_seq_length", 32),
        attentions=2,
        conv_in=config.get("conv_in_channels"),
        layout="diffusers",
        whole_unet=False,
        hint=name.lower(),
    )
    return family_of(measured, config, {})[0]


def _config_columns(config: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """Columns that only the config knows. Other keys diffusers ignores as well (activation, bias)."""
    for key in ("motion_transformer_layers_per_block", "motion_mid_block_layers_per_block"):
        if config.get(key, 1) not in (1, [1] * blocks):
            raise UnknownFile(
                f"config.json has {key} = {config[key]}; only motion modules of one block are supported."
            )
    return {
        "heads": _per_block(config.get("motion_num_attention_heads", 8), blocks),
        "norm_groups": config.get("motion_norm_num_groups", 32),
        "positions": config.get("motion_max_seq_length", 32),
    }


def _row_of_shape(m: MotionShapes) -> MotionFamily:
    """The known family with exactly these widths (of an installed model), or a new one named custom."""
    layers = tuple(map(len, m.down))
    for row in known_families().values():
        if (row.config.channels, row.config.layers, row.config.mid) == (m.channels, layers, m.mid):
            return row
    shared = gcd(*m.channels)
    return UNKNOWN.updated(
        channels=m.channels,
        layers=layers,
        heads=(gcd(8, shared),) * len(m.channels),
        norm_groups=gcd(32, shared),
    )


def _agreeing(family: MotionFamily, m: MotionShapes) -> MotionFamily:
    spec = family.config
    if (spec.down_widths, spec.mid, spec.up_widths) != (m.down, m.mid, m.up):
        raise Damaged(
            f"The header says {spec.name} motion ({spec.shape}), but the tensors are of another shape."
        )
    return family


def _blocks(widths: Mapping[str, Mapping[int, int]], path: str) -> tuple[tuple[int, ...], ...]:
    found = {int(block.rpartition(".")[2]): row for block, row in widths.items() if block.startswith(path)}
    for i in range(max(found, default=-1) + 1):
        if i not in found or sorted(found[i]) != list(range(len(found[i]))):
            raise UnknownFile(f"Motion modules are missing in {path}.{i}: the file is not complete.")
    return tuple(tuple(found[i][j] for j in range(len(found[i]))) for i in range(len(found)))


def _per_block(value: int | list[int] | tuple[int, ...], blocks: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * blocks


def _one_or_all(values: tuple[int, ...]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
