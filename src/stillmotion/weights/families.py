"""Which row of the table of families a set of motion shapes is. Knows names and shapes, no tensors.

Two families can have the same keys and shapes (v2, Lightning and AnimateLCM's diffusers adapter). Then the
name of the file decides, and a note says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import gcd
from typing import Any

from stillmotion.errors import Damaged, Mismatch, UnknownFile
from stillmotion.motion.spec import FAMILIES, MotionSpec
from stillmotion.weights.names import MODULE, Layout

Shape = tuple[int, ...]
METADATA_KEY = "stillmotion"
"""Key in a safetensors header under which we keep the whole spec of a motion model, as JSON."""


@dataclass(frozen=True)
class Measured:
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
    when: Callable[[Measured], bool]
    note: str = ""


_SD15 = (FAMILIES["sd15-v2"].channels, FAMILIES["sd15-v2"].layers)
_SDXL = (FAMILIES["sdxl-beta"].channels, FAMILIES["sdxl-beta"].layers)


def _sd15(m: Measured) -> bool:
    return (m.channels, tuple(map(len, m.down))) == _SD15


def _sdxl(m: Measured) -> bool:
    return (m.channels, tuple(map(len, m.down))) == _SDXL


_BY_NAME = (
    "v2, Lightning and AnimateLCM adapters have the same keys; taken for {} because of the file's name."
)
_PIA = (
    "PIA animates a given picture: its first convolution is kept, but text-to-video makes no use of it yet."
)
_NO_TABLE = "No positional tables are stored, so v1 and v3 look alike; taken for v3."

RULES = (
    Rule("hotshot-xl", lambda m: _sdxl(m) and m.layout == "hotshot"),
    Rule("hotshot-xl", lambda m: _sdxl(m) and m.positions == 24),
    Rule("sdxl-beta", _sdxl),
    Rule("pia", lambda m: _sd15(m) and m.conv_in == 9, _PIA),
    Rule("sd15-v2", lambda m: _sd15(m) and m.mid and m.positions is None and m.whole_unet),
    Rule("animatelcm", lambda m: _sd15(m) and m.mid and m.positions is None),
    Rule("animatelcm", lambda m: _sd15(m) and m.mid and m.positions == 64),
    Rule("animatelcm", lambda m: _sd15(m) and m.mid and "lcm" in m.hint, _BY_NAME.format("AnimateLCM")),
    Rule("lightning", lambda m: _sd15(m) and m.mid and "lightning" in m.hint, _BY_NAME.format("Lightning")),
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
) -> Measured:
    """Widths, positions and extras of canonical motion shapes; `UnknownFile` if modules are missing."""
    widths: dict[str, dict[int, int]] = {}
    positions, attentions = None, 1
    for name, shape in shapes.items():
        found = MODULE.fullmatch(name)
        if not found:
            continue
        if found["rest"] == "temporal_transformer.norm.weight":
            widths.setdefault(found["block"], {})[int(found["j"])] = shape[0]
        if name.endswith(".pos_encoder.pe") and len(shape) == 3:
            positions = shape[1]
        if ".attention_blocks.1." in name:
            attentions = 2
    conv_in = shapes.get("conv_in.weight")
    return Measured(
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
    measured: Measured, config: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[MotionSpec, list[str]]:
    """The spec of a motion file and notes on how sure that is.

    What the file says of itself goes first (our metadata, a diffusers config), then the table of rules.
    """
    if METADATA_KEY in metadata:
        return _agreeing(spec_from_json(metadata[METADATA_KEY]), measured), []
    rule = next((rule for rule in RULES if rule.when(measured)), None)
    row = FAMILIES[rule.family] if rule else _row_of_shape(measured)
    notes = [rule.note] if rule and rule.note else []
    spec = replace(
        row,
        channels=measured.channels,
        layers=tuple(map(len, measured.down)),
        mid=measured.mid,
        attentions=measured.attentions,
        positions=measured.positions or row.positions,
        conv_in=measured.conv_in,
    )
    if spec.down_widths != measured.down:
        raise UnknownFile(f"Motion modules of mixed widths in one down block are not known: {measured.down}.")
    if spec.up_widths != measured.up:
        spec = replace(spec, up=measured.up)
    if row.name == "lightning" and (steps := re.search(r"(\d)-?step", measured.hint)):
        spec = replace(spec, num_inference_steps=int(steps.group(1)))
    if config:
        return replace(spec, **_config_columns(config, len(spec.channels))), notes
    if row.name == "custom":
        notes.append(
            f"Heads ({spec.heads[0]}) and norm groups ({spec.norm_groups}) are not in the file: assumed."
        )
    return spec, notes


def spec_to_json(spec: MotionSpec) -> str:
    """All columns of a spec; the inverse of `spec_from_json`."""
    return json.dumps(asdict(spec))


def spec_from_json(text: str) -> MotionSpec:
    """A spec from our metadata; columns that this version does not know are an error."""
    try:
        columns = json.loads(text)
        unknown = set(columns) - {field.name for field in fields(MotionSpec)}
    except (ValueError, TypeError) as error:
        raise Damaged(f"The stillmotion metadata of this file cannot be read ({error}).") from error
    if unknown:
        raise Mismatch(
            f"This file was written by another version of stillmotion: unknown {', '.join(sorted(unknown))}."
        )
    return MotionSpec(**{name: _tuples(value) for name, value in columns.items()})


def adapter_config(spec: MotionSpec) -> dict[str, Any]:
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


def spec_from_adapter_config(config: Mapping[str, Any], name: str = "custom") -> MotionSpec:
    """The spec a MotionAdapter config describes (old ones too), by the rules of `family_of`."""
    channels = tuple(config.get("block_out_channels", FAMILIES["sd15-v2"].channels))
    layers = _per_block(config.get("motion_layers_per_block", 2), len(channels))
    mid = bool(config.get("use_motion_mid_block", True))
    shape = tuple((c,) * n for c, n in zip(channels, layers, strict=True))
    measured = Measured(
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


def _row_of_shape(m: Measured) -> MotionSpec:
    """The row with exactly these widths (emoji, ...), or a new one named custom."""
    layers = tuple(map(len, m.down))
    for row in FAMILIES.values():
        if (row.channels, row.layers, row.mid) == (m.channels, layers, m.mid):
            return row
    shared = gcd(*m.channels)
    return MotionSpec(
        "custom",
        base="custom",
        channels=m.channels,
        layers=layers,
        heads=(gcd(8, shared),) * len(m.channels),
        norm_groups=gcd(32, shared),
    )


def _agreeing(spec: MotionSpec, m: Measured) -> MotionSpec:
    if (spec.down_widths, spec.mid, spec.up_widths) != (m.down, m.mid, m.up):
        raise Damaged(
            f"The header says {spec.name} motion ({spec.shape}), but the tensors are of another shape."
        )
    return spec


def _blocks(widths: Mapping[str, Mapping[int, int]], path: str) -> tuple[tuple[int, ...], ...]:
    found = {int(block.rpartition(".")[2]): row for block, row in widths.items() if block.startswith(path)}
    for i in range(max(found, default=-1) + 1):
        if i not in found or sorted(found[i]) != list(range(len(found[i]))):
            raise UnknownFile(f"Motion modules are missing in {path}.{i}: the file is not complete.")
    return tuple(tuple(found[i][j] for j in range(len(found[i]))) for i in range(len(found)))


def _per_block(value: int | list[int] | tuple[int, ...], blocks: int) -> tuple[int, ...]:
    return (value,) * blocks if isinstance(value, int) else tuple(value)


def _one_or_all(values: tuple[int, ...]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
