"""Motion on a stock UNet as hooks that come off again. Knows no files, no prompts and no pipelines.

A clip is a batch: the UNet sees (batch*frames, c, h, w), and what it can do to a batch of pictures it does to
the frames. Nothing of the UNet is replaced and no module is added to it, so its state_dict is the same while
attached, and once the hooks are off it is the same UNet bit for bit.

Motions given together act in parallel on the same input, h + s1*d1(h) + s2*d2(h), so their order does not
matter; a second `attach` on the same UNet rides on the output of the first.

Attach first, then compile, convert or export: what was exported keeps the motion it had. If the UNet
checkpoints its resnets, finish the backward pass before detaching: they run again in it, hooks included.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stillmotion.errors import AttachError
from stillmotion.hooks import Riding
from stillmotion.motion.module import MotionModule, MotionNet
from stillmotion.motion.slots import bare, has_mid, slots, widths
from stillmotion.motion.spec import MotionSpec, Norm, describe

Parity = Literal["original", "diffusers"]
"""Whose numbers: the norms of the family row, or diffusers' (every motion norm pooled over the clip)."""

log = logging.getLogger(__name__)


def check_frames(spec: MotionSpec, frames: int) -> None:
    """AttachError if a motion module has no positions for so many frames at once."""
    if frames > spec.positions:
        raise AttachError(
            f"{spec.name} motion knows places for {spec.positions} frames at once, not {frames}: use at most "
            f"{spec.positions}."
        )


def attach(
    unet: nn.Module,
    motion: MotionNet | Sequence[MotionNet],
    frames: int = 16,
    strength: float | Sequence[float] = 1.0,
    parity: Parity = "original",
) -> Attachment:
    """Put motion on a UNet2DConditionModel: `with attach(...):`, or `.detach()` on what this returns.

    The batch of each call is clips of `frames` pictures, clip after clip. `strength` scales what each motion
    adds; at 0, or with one frame, the UNet computes exactly what it does without motion. (The resnet norms
    that v1 pools over the clip know no halves: pooled unless 0.) AttachError where motion does not fit the
    UNet, or a batch does not divide by the frames.
    """
    return Attachment(unet, motion, frames, strength, parity)


class Attachment(Riding):
    """Motion riding on a UNet until `.detach()`; `.frames` and `.strength` may change between two calls."""

    def __init__(
        self,
        unet: nn.Module,
        motion: MotionNet | Sequence[MotionNet],
        frames: int,
        strength: float | Sequence[float],
        parity: Parity,
    ) -> None:
        super().__init__()
        if parity not in get_args(Parity):
            raise AttachError(f"parity is {parity!r}, expected one of {', '.join(get_args(Parity))}.")
        self.unet = bare(unet)
        self.motions = [_net(m) for m in (motion if isinstance(motion, Sequence) else [motion])]
        self.parity = parity
        self.frames = frames
        self.strength = strength
        for net in self.motions:
            _check_fit(net, self.unet)
        self._modules = [net.modules_by_name() for net in self.motions]
        self._hook()

    @property
    def frames(self) -> int:
        """Pictures per clip: the batch of every call must be a multiple of it."""
        return self._frames

    @frames.setter
    def frames(self, frames: int) -> None:
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise AttachError(f"frames is {frames!r}, expected a whole number of at least 1.")
        for net in self.motions:
            check_frames(net.spec, frames)
        self._frames = frames

    @property
    def strength(self) -> list[float]:
        """Strength of each motion, in the order given; one number sets all of them."""
        return self._strength

    @strength.setter
    def strength(self, strength: float | Sequence[float]) -> None:
        each = list(strength) if isinstance(strength, Sequence) else [strength] * len(self.motions)
        if len(each) != len(self.motions):
            raise AttachError(
                f"{len(each)} strengths were given for {len(self.motions)} motions: one for each."
            )
        self._strength = [float(value) for value in each]

    def _hook(self) -> None:
        places = slots(self.unet)
        for name in dict.fromkeys(name for modules in self._modules for name in modules):
            hook = partial(self._after_slot, name)
            self._handles.append(places[name].module.register_forward_hook(hook))
        if self.parity == "original" and any(net.spec.resnet_norm == "clip" for net in self.motions):
            for norm in _resnet_norms(self.unet):
                self._handles.append(norm.register_forward_pre_hook(self._before_norm))
                self._handles.append(norm.register_forward_hook(_after_norm))

    def _after_slot(self, name: str, slot: nn.Module, args: Any, output: Any) -> Any:
        """Attention returns a tuple (the blocks ask with return_dict=False), a resnet a tensor; so do we."""
        riders = self._riders(name)
        if not riders:
            return None
        if isinstance(output, tuple):
            return (self._moved(output[0], riders), *output[1:])
        return self._moved(output, riders)

    def _riders(self, name: str) -> list[tuple[MotionNet, MotionModule, float]]:
        if self._frames == 1:
            return []
        everyone = zip(self.motions, self._modules, self._strength, strict=True)
        return [(net, modules[name], s) for net, modules, s in everyone if s and name in modules]

    def _moved(self, hidden: Tensor, riders: list[tuple[MotionNet, MotionModule, float]]) -> Tensor:
        self._check_batch(hidden.shape[0])
        moved = hidden
        for net, module, strength in riders:
            _follow(net, module, hidden)
            moved = torch.add(moved, module.residual(hidden, self._frames, self._norm), alpha=strength)
        return moved

    @property
    def _norm(self) -> Norm | None:
        return "clip" if self.parity == "diffusers" else None

    def _check_batch(self, batch: int) -> None:
        if batch % self._frames:
            raise AttachError(
                f"The UNet got a batch of {batch}, which is not made of clips of {self._frames} frames: pass "
                f"num_images_per_prompt={self._frames} or {self._frames} prompts, or set attachment.frames."
            )

    def _before_norm(self, norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """v1's ResNet norms see (b, c, f, h, w), statistics over the whole clip (compat.md 3.4)."""
        pooled = any(
            s and net.spec.resnet_norm == "clip" for net, s in zip(self.motions, self._strength, strict=True)
        )
        if self._frames == 1 or not pooled or args[0].ndim == 5:
            return None
        self._check_batch(args[0].shape[0])
        return (args[0].unflatten(0, (-1, self._frames)).transpose(1, 2), *args[1:])


def _after_norm(norm: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    return output.transpose(1, 2).flatten(0, 1) if output.ndim == 5 else None


def _resnet_norms(unet: nn.Module) -> list[nn.GroupNorm]:
    """`norm1` and `norm2` of every resnet, and `conv_norm_out`: what the v1 original pools."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    resnets = [resnet for block in blocks if block is not None for resnet in block.resnets]
    norms = [norm for resnet in resnets for norm in (resnet.norm1, resnet.norm2)] + [unet.conv_norm_out]
    return [norm for norm in norms if isinstance(norm, nn.GroupNorm)]


def _net(motion: nn.Module) -> MotionNet:
    net = motion if isinstance(motion, MotionNet) else getattr(motion, "module", motion)
    if not isinstance(net, MotionNet):
        raise AttachError(
            f"{type(motion).__name__} is not motion: give a MotionModel, as MotionModel.load(file) makes it."
        )
    return net


def _check_fit(net: MotionNet, unet: nn.Module) -> None:
    spec, down, up, mid = net.spec, widths(unet, "down_blocks"), widths(unet, "up_blocks"), has_mid(unet)
    if (spec.down_widths, spec.up_widths) != (down, up) or (spec.mid and not mid):
        raise AttachError(
            f"{spec.name} motion is made for another UNet: it has {spec.shape}; this UNet has "
            f"{describe(down, down[-1][0] if mid else None, up)}. Use motion and a base of the same family."
        )


def _follow(net: MotionNet, module: MotionModule, hidden: Tensor) -> None:
    """Move the motion to where the pictures are: `unet.to()`, `.half()` and offloading do not reach it.

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
