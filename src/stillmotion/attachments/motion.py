"""Motion modules as hooks on a stock UNet.

A clip is a batch: the UNet sees (batch*frames, c, h, w), and what it can do to a batch of images it does to
the frames. Nothing of the UNet is replaced and no module is added to it, so its state_dict is the same while
attached, and once the hooks are off it is the same UNet bit for bit.

Motions given together act in parallel on the same input, h + s1*d1(h) + s2*d2(h), so their order does not
matter; a second attachment on the same UNet acts on the output of the first.

Attach first, then compile, convert or export: what was exported keeps the motion it had. If the UNet
checkpoints its resnets, finish the backward pass before detaching: they run again in it, hooks included.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stillmotion.attachments.base import Attachment, Handle
from stillmotion.attachments.frames import FrameContext
from stillmotion.errors import AttachError
from stillmotion.motion.config import MotionConfig, Norm, describe_shape
from stillmotion.motion.module import MotionModule, MotionModules
from stillmotion.motion.slots import has_mid, slots, widths

GroupNormMode = Literal["family", "pooled"]
"""Group norms as the family was trained, or every motion norm pooled over the clip, as diffusers does."""

log = logging.getLogger(__name__)


def check_frames(spec: MotionConfig, frames: int) -> None:
    """AttachError if a motion module has no positions for so many frames at once."""
    if frames > spec.positions:
        raise AttachError(
            f"{spec.name} motion has positions for {spec.positions} frames at once, not {frames}: use at "
            f"most "
            f"{spec.positions}."
        )


def attach_motion(
    target: Any,
    motion: MotionModules | Sequence[MotionModules],
    frames: int = 16,
    scale: float | Sequence[float] = 1.0,
    group_norm: GroupNormMode = "family",
    single_frame: bool = False,
) -> MotionAttachment:
    """Put motion on a UNet or a pipeline's: `with attach_motion(...):`, or `.detach()` on what this returns.

    The batch of each call is clips of `frames` images, clip after clip; the other arguments are those of
    `MotionAttachment`. AttachError where motion does not fit the UNet, or a batch is not made of such clips.
    """
    return MotionAttachment(motion, scale, group_norm, single_frame).attach(target, frames)


class MotionAttachment(Attachment):
    """Motion on a UNet, from `.attach(pipeline_or_unet, frames)` on; settings may change between two calls.

    Args:
        motion: one set of motion modules, or several that act in parallel.
        scale: what each adds is multiplied by it; at 0 the UNet computes exactly what it does without motion.
            (The resnet norms that v1 pools over the clip are pooled at any scale but 0.)
        group_norm: norms as the family was trained, or all pooled over the clip, as diffusers does.
        single_frame: whether motion acts on clips of one frame, as in AnimateDiff and diffusers. A window of
            one frame out of a longer clip always has motion.
    """

    def __init__(
        self,
        motion: MotionModules | Sequence[MotionModules],
        scale: float | Sequence[float] = 1.0,
        group_norm: GroupNormMode = "family",
        single_frame: bool = False,
    ) -> None:
        self.motions = [_net(m) for m in (motion if isinstance(motion, Sequence) else [motion])]
        self._modules = [net.modules_by_name() for net in self.motions]
        self.scale = scale
        self.group_norm = group_norm
        self.single_frame = single_frame

    def on_attach(self, unet: nn.Module) -> Iterator[Handle]:
        """A hook for each slot that a motion has a module for, and those that pool v1's resnet norms."""
        for net in self.motions:
            _check_fit(net, unet)
        places = slots(unet)
        for name in dict.fromkeys(name for modules in self._modules for name in modules):
            yield places[name].module.register_forward_hook(partial(self._after_slot, name))
        if any(net.spec.resnet_norm == "pooled" for net in self.motions):
            for norm in _resnet_norms(unet):
                yield norm.register_forward_pre_hook(self._before_norm)
                yield norm.register_forward_hook(_after_norm)

    def check_frames(self, frames: int) -> None:
        """AttachError if one of the motions has no positions for so many frames at once."""
        for net in self.motions:
            check_frames(net.spec, frames)

    @property
    def group_norm(self) -> GroupNormMode:
        """Which norms are pooled over the clip."""
        return self._group_norm

    @group_norm.setter
    def group_norm(self, group_norm: GroupNormMode) -> None:
        if group_norm not in get_args(GroupNormMode):
            raise AttachError(
                f"group_norm is {group_norm!r}, expected one of {', '.join(get_args(GroupNormMode))}."
            )
        self._group_norm = group_norm

    @property
    def scale(self) -> list[float]:
        """Scale of each motion, in the order given; one number sets all of them."""
        return self._scale

    @scale.setter
    def scale(self, scale: float | Sequence[float]) -> None:
        each = list(scale) if isinstance(scale, Sequence) else [scale] * len(self.motions)
        if len(each) != len(self.motions):
            raise AttachError(f"{len(each)} scales were given for {len(self.motions)} motions: one for each.")
        self._scale = [float(value) for value in each]

    def _after_slot(self, name: str, slot: nn.Module, args: Any, output: Any) -> Any:
        """Attention returns a tuple (the blocks ask with return_dict=False), a resnet a tensor; so do we."""
        active = self._active(name)
        if not active:
            return None
        if isinstance(output, tuple):
            return (self._moved(output[0], active), *output[1:])
        return self._moved(output, active)

    def _active(self, name: str) -> list[tuple[MotionModules, MotionModule, float]]:
        if self.context.total == 1 and not self.single_frame:
            return []
        everyone = zip(self.motions, self._modules, self._scale, strict=True)
        return [(net, modules[name], s) for net, modules, s in everyone if s and name in modules]

    def _moved(self, hidden: Tensor, active: list[tuple[MotionModules, MotionModule, float]]) -> Tensor:
        frames, moved = self.context.frames, hidden
        self.context.clips(hidden.shape[0])
        norm: Norm | None = "pooled" if self.group_norm == "pooled" else None
        for net, module, scale in active:
            _follow(net, module, hidden)
            moved = torch.add(moved, module.residual(hidden, frames, norm), alpha=scale)
        return moved

    def _before_norm(self, norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """v1's ResNet norms see (b, c, f, h, w), statistics over the whole clip (docs/formats.md 4)."""
        frames = self.context.frames
        pooled = self.group_norm == "family" and any(
            s and net.spec.resnet_norm == "pooled" for net, s in zip(self.motions, self._scale, strict=True)
        )
        if frames == 1 or not pooled or args[0].ndim == 5:
            return None
        clips = self.context.clips(args[0].shape[0])
        return (args[0].unflatten(0, (clips, frames)).transpose(1, 2), *args[1:])


def _after_norm(norm: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    return output.transpose(1, 2).flatten(0, 1) if output.ndim == 5 else None


def attached_motion(target: Any) -> MotionModules | None:
    """The motion that is attached to a UNet or a pipeline's, if it is exactly one."""
    network = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
    others = FrameContext.on(network).attachments if isinstance(network, nn.Module) else []
    found = [net for other in others if isinstance(other, MotionAttachment) for net in other.motions]
    return found[0] if len(found) == 1 else None


def _resnet_norms(unet: nn.Module) -> list[nn.GroupNorm]:
    """`norm1` and `norm2` of every resnet, and `conv_norm_out`: what the v1 original pools."""
    blocks: list[Any] = [block for path in ("down_blocks", "up_blocks") for block in getattr(unet, path)]
    blocks.append(unet.mid_block)
    resnets = [resnet for block in blocks if block is not None for resnet in block.resnets]
    norms = [norm for resnet in resnets for norm in (resnet.norm1, resnet.norm2)] + [unet.conv_norm_out]
    return [norm for norm in norms if isinstance(norm, nn.GroupNorm)]


def _net(motion: nn.Module) -> MotionModules:
    net = motion if isinstance(motion, MotionModules) else getattr(motion, "module", motion)
    if not isinstance(net, MotionModules):
        raise AttachError(
            f"{type(motion).__name__} is not motion: give a MotionModel, as MotionModel.load(file) makes it."
        )
    return net


def _check_fit(net: MotionModules, unet: nn.Module) -> None:
    spec, down, up, mid = net.spec, widths(unet, "down_blocks"), widths(unet, "up_blocks"), has_mid(unet)
    if (spec.down_widths, spec.up_widths) != (down, up) or (spec.mid and not mid):
        raise AttachError(
            f"{spec.name} motion is made for another UNet: it has {spec.shape}; this UNet has "
            f"{describe_shape(down, down[-1][0] if mid else None, up)}. Use motion and a base of the same "
            f"family."
        )


def _follow(net: MotionModules, module: MotionModule, hidden: Tensor) -> None:
    """Move the motion to where the images are: `unet.to()`, `.half()` and offloading do not reach it.

    Under autocast the dtypes are autocast's business, and weights in training are never cast.
    """
    weight, dtype = module.temporal_transformer.norm.weight, hidden.dtype
    if (weight.device, weight.dtype) == (hidden.device, dtype):
        return
    if torch.is_autocast_enabled(hidden.device.type):
        if weight.device == hidden.device:
            return
        dtype = weight.dtype
    if weight.dtype != dtype and weight.requires_grad and torch.is_grad_enabled():
        raise AttachError(
            f"The motion in training is {weight.dtype}, the UNet runs in {dtype}: "
            "train under torch.autocast, or give both the same dtype."
        )
    log.info("Motion %s follows the UNet to %s, %s.", net.spec.name, hidden.device, dtype)
    with torch.inference_mode(False), torch.no_grad():
        net.to(device=hidden.device, dtype=dtype)
