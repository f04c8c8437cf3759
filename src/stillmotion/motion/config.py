"""The config of a motion module, and the shapes of its weights that follow from it.

The rows of the known families are in families.py. `group_norm="family"` uses the norms of the config;
diffusers pools every motion norm over the clip instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["per-frame", "pooled"]
"""GroupNorm statistics: of each frame alone, or pooled over all frames of a clip."""

Widths = tuple[tuple[int, ...], ...]
"""Channels of every module, block by block."""


@dataclass(frozen=True)
class MotionConfig:
    """The shape of the modules of one family.

    `channels` are those of the UNet's down blocks; block i of the down path carries `layers[i]` modules, the
    mirrored block of the up path `layers[i] + 1`.
    """

    name: str
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """attention heads per down block, mirrored on the way up; the mid block has those of the last block"""
    mid: bool = False
    positions: int = 32
    """length of the positional table: the longest clip of one pass"""
    norm_groups: int = 32
    attentions: int = 2
    """temporal self-attentions per module (SparseCtrl encoders have one)"""
    resnet_norm: Norm = "per-frame"
    motion_norm: Norm = "per-frame"
    base: str = "sd15"
    """family of the text-to-image model it fits: sd15, sdxl, that of an installed model or custom"""
    conv_in: int | None = None
    """input channels of the replaced first convolution (PIA: latent 4 + mask 1 + masked image 4)"""
    up: Widths | None = None
    """channels of every up module by block, where the up path does not mirror the down path; () if none"""

    @property
    def down_widths(self) -> Widths:
        """Channels of every module of the down path, block by block."""
        return tuple(
            (channels,) * layers for channels, layers in zip(self.channels, self.layers, strict=True)
        )

    @property
    def up_widths(self) -> Widths:
        """Channels of every module of the up path, block by block."""
        if self.up is not None:
            return self.up
        return tuple((block[0],) * (len(block) + 1) for block in reversed(self.down_widths))

    @property
    def shape(self) -> str:
        """The places and widths in words: "down 320x2 640x2, mid 640, up 640x3 320x3"."""
        return describe_shape(self.down_widths, self.channels[-1] if self.mid else None, self.up_widths)

    def modules(self) -> dict[str, tuple[int, int]]:
        """Canonical prefix of every module -> (channels, heads), in the order of the UNet."""
        found: dict[str, tuple[int, int]] = {}
        for i, (block, heads) in enumerate(zip(self.down_widths, self.heads, strict=True)):
            found |= {f"down_blocks.{i}.motion_modules.{j}": (c, heads) for j, c in enumerate(block)}
        if self.mid:
            found["mid_block.motion_modules.0"] = (self.channels[-1], self.heads[-1])
        for i, (block, heads) in enumerate(zip(self.up_widths, reversed(self.heads), strict=False)):
            found |= {f"up_blocks.{i}.motion_modules.{j}": (c, heads) for j, c in enumerate(block)}
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every parameter (docs/formats.md 1), without positional tables."""
        return {
            f"{prefix}.{suffix}": shape
            for prefix, (channels, _) in self.modules().items()
            for suffix, shape in _module_shapes(channels, self.attentions).items()
        }


def describe_shape(down: Widths, mid: int | None, up: Widths) -> str:
    """Places and widths in words; blocks of mixed widths list them all."""

    def words(block: tuple[int, ...]) -> str:
        return f"{block[0]}x{len(block)}" if len(set(block)) == 1 else "+".join(map(str, block))

    paths = [" ".join(map(words, path)) or "nothing" for path in (down, up)]
    return f"down {paths[0]}, {f'mid {mid}' if mid else 'no mid'}, up {paths[1]}"


def _module_shapes(c: int, attentions: int) -> dict[str, tuple[int, ...]]:
    def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    block = "temporal_transformer.transformer_blocks.0"
    shapes = affine("temporal_transformer.norm", c) | affine("temporal_transformer.proj_in", c, c)
    for i in range(attentions):
        shapes |= {f"{block}.attention_blocks.{i}.to_{x}.weight": (c, c) for x in "qkv"}
        shapes |= affine(f"{block}.attention_blocks.{i}.to_out.0", c, c) | affine(f"{block}.norms.{i}", c)
    shapes |= affine(f"{block}.ff.net.0.proj", 8 * c, c) | affine(f"{block}.ff.net.2", c, 4 * c)
    return shapes | affine(f"{block}.ff_norm", c) | affine("temporal_transformer.proj_out", c, c)
