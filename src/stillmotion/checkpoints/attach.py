"""`stillmotion.attach`: motion, LoRAs and any other attachments on a pipeline, by name, file or object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from stillmotion.attachments.base import Attachment, unet_of
from stillmotion.attachments.frames import FrameContext
from stillmotion.attachments.lora import LoraAttachment, WeightLike
from stillmotion.attachments.motion import GroupNormMode, MotionAttachment
from stillmotion.attachments.stack import AttachmentStack
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import AttachError

Motion = nn.Module | str | Path
LoraSource = Lora | str | Path


def attach(
    target: Any,
    *attachments: Attachment | Lora | nn.Module | Sequence[nn.Module] | int,
    motion: Motion | Sequence[Motion] | None = None,
    loras: Mapping[Any, WeightLike] | Iterable[LoraSource] | LoraSource | None = None,
    frames: int | None = None,
    motion_scale: float | Sequence[float] = 1.0,
    group_norm: GroupNormMode = "family",
    single_frame_motion: bool = False,
    scale: float | Sequence[float] | None = None,
) -> AttachmentStack:
    """Put motion, LoRAs and other attachments on a pipeline or UNet: `with attach(...):`, or `.detach()`.

    The batch of each call of the UNet is clips of `frames` images, clip after clip. They act in the order
    given, motion and LoRAs last, and come off together; the UNet is then what it was, bit for bit.

    Args:
        target: any diffusers pipeline with a UNet, or the UNet2DConditionModel itself.
        attachments: objects of `Attachment`; a `MotionModel` (or several in a list) and a `Lora` do as well.
        motion: a `MotionModel`, a file, folder or hub name, or a list of these, which act in parallel.
        loras: files, hub names or `Lora` objects and the weight of each; a list or one alone has weight 1.
        frames: images per clip; those of what is attached already if not given, else 16.
        motion_scale: what motion adds is multiplied by it; one number, or one for each motion.
        group_norm: "family", or "pooled" for the norms of diffusers.
        single_frame_motion: whether motion acts on clips of one frame, as in AnimateDiff and diffusers.
        scale: the former name of `motion_scale`.

    AttachError where something does not fit, Mismatch or WrongKind for files that do not.
    """
    numbers = [each for each in attachments if isinstance(each, int)]  # attach(unet, motion, 16), as it was
    frames = numbers[0] if numbers and frames is None else frames
    found: list[Attachment] = []
    motions: list[Any] = [_motion(each) for each in _several(motion)]
    for each in attachments:
        if isinstance(each, Attachment):
            found.append(each)
        elif isinstance(each, Lora):
            found.append(LoraAttachment(each.place))
        elif isinstance(each, nn.Module):
            motions.append(each)
        elif isinstance(each, (list, tuple)):
            motions += each
        elif not isinstance(each, int):
            raise AttachError(
                f"attach was given {each!r}, which is no Attachment: name files, as motion=... or loras=..."
            )
    scale = motion_scale if scale is None else scale
    if motions:
        found.append(MotionAttachment(motions, scale, group_norm, single_frame_motion))
    weights = loras if isinstance(loras, Mapping) else dict.fromkeys(_several(loras), 1.0)
    for lora, weight in weights.items():
        place = partial(_lora(lora).place, motion=motions[0] if len(motions) == 1 else None)
        found.append(LoraAttachment(place, weight))
    if frames is None and not FrameContext.on(unet_of(target)).attachments:
        frames = 16
    return AttachmentStack(*found).attach(target, frames)


def _several(given: Any) -> list[Any]:
    """What was given, one or several, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, Iterable) and not isinstance(given, (str, nn.Module)) else [given]


def _motion(motion: Motion) -> nn.Module:
    return motion if isinstance(motion, nn.Module) else MotionModel.load(motion)


def _lora(lora: LoraSource) -> Lora:
    return lora if isinstance(lora, Lora) else Lora.load(lora)
