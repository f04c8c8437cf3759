"""Where motion modules are attached to a stock UNet.

    down, up    resnet -> [attention] -> *    after attentions[j] where the block has one, else resnets[j]
    mid         resnet -> attention -> * -> resnet

The skip tensor of a down block is taken after the slot and ControlNet residuals are added later, both as in
the original and in diffusers (docs/formats.md 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from stillmotion.errors import AttachError
from stillmotion.motion.config import Widths


@dataclass(frozen=True)
class Slot:
    """A module of the UNet whose output motion is added to."""

    module: nn.Module
    channels: int


def unwrap(network: nn.Module) -> nn.Module:
    """The plain network, out of DistributedDataParallel; AttachError for one that is compiled."""
    if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
        raise AttachError(
            "The UNet is compiled already and would not see motion: attach to the plain UNet, then compile."
        )
    inner = getattr(network, "module", None)
    if isinstance(inner, nn.Module) and not hasattr(network, "down_blocks"):
        return unwrap(inner)
    return network


def unwrap_unet(unet: nn.Module) -> nn.Module:
    """The stock UNet, out of DistributedDataParallel; AttachError for what cannot carry motion."""
    if not isinstance(unet, nn.Module) and isinstance(getattr(unet, "unet", None), nn.Module):
        raise AttachError(f"{type(unet).__name__} is a whole pipeline: give its UNet, pipeline.unet.")
    unet = unwrap(unet)
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "conv_in"):
        raise AttachError(
            f"{type(unet).__name__} is not a UNet2DConditionModel: motion needs its down, mid and up blocks."
        )
    if any(
        hasattr(block, "motion_modules") or hasattr(block, "temp_attentions")
        for block in getattr(unet, "down_blocks", ())
    ):
        raise AttachError(
            f"{type(unet).__name__} has temporal layers of its own: load a plain UNet2DConditionModel."
        )
    return unet


def slots(unet: nn.Module) -> dict[str, Slot]:
    """Canonical prefix of the motion module that belongs there -> its place, in the order of the UNet."""
    found: dict[str, Slot] = {}
    for path in ("down_blocks", "up_blocks"):
        for i, block in enumerate(getattr(unet, path, ())):
            found |= {f"{path}.{i}.motion_modules.{j}": slot for j, slot in enumerate(_block_slots(block))}
        if path == "down_blocks" and (mid := _mid_slot(getattr(unet, "mid_block", None))):
            found["mid_block.motion_modules.0"] = mid
    return found


def widths(unet: nn.Module, path: str) -> Widths:
    """Channels of the slots of `down_blocks` or `up_blocks`, block by block."""
    return tuple(tuple(slot.channels for slot in _block_slots(block)) for block in getattr(unet, path, ()))


def has_mid(unet: nn.Module) -> bool:
    """Whether there is an attention in the middle of the UNet for a mid module to follow."""
    return _mid_slot(getattr(unet, "mid_block", None)) is not None


def _block_slots(block: nn.Module) -> list[Slot]:
    resnets = list(getattr(block, "resnets", ()))
    attentions = list(getattr(block, "attentions", None) or ())
    if len(attentions) != len(resnets) or None in attentions:
        attentions = resnets
    return [Slot(a, _channels(r)) for a, r in zip(attentions, resnets, strict=True)]


def _mid_slot(mid: Any) -> Slot | None:
    first = next(iter(getattr(mid, "attentions", None) or ()), None)
    return None if first is None else Slot(first, _channels(mid.resnets[0]))


def _channels(resnet: Any) -> int:
    """Of the last convolution: the resnet's own `out_channels` is wrong in the last layer of a KUpBlock."""
    return getattr(resnet.conv2, "out_channels", resnet.out_channels)
