"""Names of motion weights as tables: each tensor of a module in each layout.

    animatediff down_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0.norms.0.weight
    diffusers   down_blocks.0.motion_modules.1.transformer_blocks.0.norm1.weight
    hotshot     down_blocks.0.temporal_attentions.1.transformer_blocks.0.norms.0.weight

The canonical names are the original ones. The positional table stands apart (POSITIONS): the original stores
it once per attention, diffusers once per block, and AnimateLCM not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from stillmotion.errors import UnknownFile

Layout = Literal["animatediff", "diffusers", "hotshot"]

_BLOCK = "transformer_blocks.0."
_TO_DIFFUSERS_PARTS = {
    "norm": "norm",
    "proj_in": "proj_in",
    _BLOCK + "attention_blocks.0.to_out.0": _BLOCK + "attn1.to_out.0",
    _BLOCK + "attention_blocks.1.to_out.0": _BLOCK + "attn2.to_out.0",
    _BLOCK + "norms.0": _BLOCK + "norm1",
    _BLOCK + "norms.1": _BLOCK + "norm2",
    _BLOCK + "ff.net.0.proj": _BLOCK + "ff.net.0.proj",
    _BLOCK + "ff.net.2": _BLOCK + "ff.net.2",
    _BLOCK + "ff_norm": _BLOCK + "norm3",
    "proj_out": "proj_out",
}
"""Parts with a weight and a bias; those with a weight alone (q, k, v) join them below."""

TO_DIFFUSERS: dict[str, str] = {
    **{
        f"{old}.{end}": f"{new}.{end}"
        for old, new in _TO_DIFFUSERS_PARTS.items()
        for end in ("weight", "bias")
    },
    **{
        f"{_BLOCK}attention_blocks.{i}.to_{x}.weight": f"{_BLOCK}attn{i + 1}.to_{x}.weight"
        for i in (0, 1)
        for x in "qkv"
    },
}
"""Original suffix (after `temporal_transformer.`) -> diffusers suffix, for the 26 tensors of a module."""

FROM_DIFFUSERS = {new: old for old, new in TO_DIFFUSERS.items()}

POSITIONS = (_BLOCK + "attention_blocks.0.pos_encoder.pe", _BLOCK + "attention_blocks.1.pos_encoder.pe")
"""Positional tables (1, L, C) of both attentions in the original layout."""

POSITIONS_DIFFUSERS = _BLOCK + "pos_embed.pe"
"""The same in diffusers: one per block, for both attentions."""

POSITION_NAMES = ("pe", "positional_encoding", "pos_encoding")
"""Names of that buffer in the original, in HotShot-XL and in AnimateLCM."""

EXTRAS = ("conv_in.weight", "conv_in.bias")
"""Tensors that may stand beside the modules: PIA's first convolution of nine channels."""

WHOLE_UNET = re.compile(
    r"(conv_in|conv_out|conv_norm_out|time_embedding|add_embedding|class_embedding)\."
    r"|(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|downsamplers|upsamplers)\."
)
"""Beginnings of image layers, in a file that holds a whole UNet: known, and dropped."""

MODULE = re.compile(
    r"(?P<block>down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:motion_modules|temporal_attentions)\.(?P<j>\d+)"
    r"\.(?P<rest>.+)"
)
"""A tensor of a motion module, in any layout."""


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout of motion weights by their names; None if there are no motion modules among them."""
    motion = [name for name in names if MODULE.fullmatch(name)]
    if not motion:
        return None
    if any(".temporal_attentions." in name or name.endswith("positional_encoding") for name in motion):
        return "hotshot"
    return "animatediff" if any(".temporal_transformer." in name for name in motion) else "diffusers"


def canonical_names(name: str, layout: Layout) -> tuple[str, ...]:
    """The canonical names of a tensor: one, two for diffusers' shared positional table, none for no motion.

    Raises `UnknownFile` for a tensor of a motion module that the layout does not have.
    """
    found = MODULE.fullmatch(name)
    if not found:
        return ()
    prefix = f"{found['block']}.motion_modules.{found['j']}.temporal_transformer."
    rest = found["rest"]
    if layout == "diffusers":
        suffixes = POSITIONS if rest == POSITIONS_DIFFUSERS else (FROM_DIFFUSERS.get(rest),)
    else:
        suffixes = (_animatediff_suffix(rest.removeprefix("temporal_transformer.")),)
    if None in suffixes:
        raise UnknownFile(
            f"The {layout} layout of motion modules has no tensor {name}: the kind of file is new to us."
        )
    return tuple(prefix + str(suffix) for suffix in suffixes)


def layout_name(canonical: str, layout: Layout) -> str:
    """The name of a canonical tensor in a layout: the inverse of `canonical_names`."""
    if layout == "animatediff" or not MODULE.fullmatch(canonical):
        return canonical
    place, _, suffix = canonical.partition(".temporal_transformer.")
    if layout == "hotshot":
        suffix = suffix.replace(".pos_encoder.pe", ".pos_encoder.positional_encoding")
        return f"{place.replace('.motion_modules.', '.temporal_attentions.')}.{suffix}"
    return f"{place}.{POSITIONS_DIFFUSERS if suffix in POSITIONS else TO_DIFFUSERS[suffix]}"


def _animatediff_suffix(rest: str) -> str | None:
    head, _, last = rest.rpartition(".")
    if last in POSITION_NAMES and head.endswith(".pos_encoder"):
        rest = f"{head}.pe"
    return rest if rest in TO_DIFFUSERS or rest in POSITIONS else None
