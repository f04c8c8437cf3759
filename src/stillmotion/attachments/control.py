"""ControlNets on a UNet: before each call the net sees what the UNet will see, and adds to what it gets.

    sample, timestep, text ──► ControlNet(hints) ──► residuals ──► the UNet's skip connections and middle

A clip is a batch, so the net sees each frame with its own hint. Several add up. It is what the ControlNet
pipelines of diffusers compute, on any pipeline: those compute it in their `__call__`, here it is a pre-hook.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillmotion.attachments.base import Attachment, Handle
from stillmotion.attachments.frames import FrameContext
from stillmotion.errors import AttachError

if TYPE_CHECKING:
    from typing_extensions import Self

Residuals = tuple[list[Tensor], Tensor]
DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"

XL = ("text_embeds", "time_ids")
"""What SDXL's networks get besides; image prompts are for the UNet alone."""


class ControlAttachment(Attachment):
    """A ControlNet with the hints of a clip.

    Args:
        net: diffusers' ControlNetModel; it follows the UNet to its device and dtype.
        hints: (frames, 3, height, width) in 0..1 in the size of the clip; one image counts for every frame.
        scale: how strongly it steers.
        start: from which part of the steps on, 0..1.
        end: up to which part.
        guess_mode: steers without the help of the prompt: only the half of guidance that has one, deeper
            layers more than the first.

    `start`, `end` and `guess_mode` need a pipeline to be attached to, not only its UNet.
    """

    def __init__(
        self,
        net: Any,
        hints: Tensor,
        scale: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        guess_mode: bool = False,
    ) -> None:
        if hints.ndim != 4 or not len(hints):
            raise AttachError(f"hints are {tuple(hints.shape)}, expected (frames, channels, height, width).")
        self.net, self.hints, self.scale = net, hints, float(scale)
        self.start, self.end = start, end
        self.guess_mode = guess_mode or bool(net.config.global_pool_conditions)
        self._pipeline: Any = None
        self._last_step = -1

    def attach(self, target: Any, frames: int | None = None) -> Self:
        """As `Attachment.attach`; the frames are those of the hints where nothing else says them."""
        unsaid = FrameContext.on(self.network_of(target)).total == 1
        if frames is None and unsaid and len(self.hints) > 1:
            frames = len(self.hints)
        return super().attach(target, frames)

    def on_attach(self, unet: nn.Module) -> Iterable[Handle]:
        self._pipeline = self.target if hasattr(self.target, "scheduler") else None
        if self._pipeline is None and (self.guess_mode or self.start > 0 or self.end < 1):
            raise AttachError(
                "start, end and guess_mode of a ControlNet need the steps of a pipeline: attach to the "
                "pipeline, not to its UNet."
            )
        self._last_step = -1
        self._signature = inspect.signature(type(unet).forward)
        yield unet.register_forward_pre_hook(self._before, with_kwargs=True)

    def detach(self) -> None:
        super().detach()
        self._pipeline = None

    @torch.no_grad()
    def _before(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._signature.bind(unet, *args, **kwargs).arguments
        if not self._acts(call["timestep"]):
            return None
        down, mid = self._residuals(call, next(unet.parameters()).dtype)
        if call.get(DOWN) is not None:
            down = [one + other for one, other in zip(call[DOWN], down, strict=True)]
        if call.get(MID) is not None:
            mid = call[MID] + mid
        return args, kwargs | {DOWN: down, MID: mid}

    def _residuals(self, call: dict[str, Any], dtype: torch.dtype) -> Residuals:
        """What the net adds, computed in the dtype of the UNet."""
        sample, text = call["sample"].to(dtype), call["encoder_hidden_states"].to(dtype)
        given = call.get("added_cond_kwargs") or {}
        added = {key: given[key].to(dtype) for key in XL if key in given}
        hints = self._hints(sample)
        with_prompt = self.guess_mode and self._pipeline.do_classifier_free_guidance
        if with_prompt:  # of guidance's two halves the second
            sample, text, hints = (tensor.chunk(2)[1] for tensor in (sample, text, hints))
            added = {key: value.chunk(2)[1] for key, value in added.items()}
        self._follow(sample.device, dtype)
        down, mid = self.net(
            sample,
            call["timestep"],
            encoder_hidden_states=text,
            controlnet_cond=hints.to(sample),
            conditioning_scale=self.scale,
            guess_mode=self.guess_mode,
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        if with_prompt:
            down, mid = [_behind_zeros(each) for each in down], _behind_zeros(mid)
        return list(down), mid

    def _follow(self, device: torch.device, dtype: torch.dtype) -> None:
        own = next(self.net.parameters())
        if (own.device, own.dtype) != (device, dtype):
            nn.Module.to(self.net, device, dtype)  # diffusers' own `to` warns, whatever is in the net

    def _hints(self, sample: Tensor) -> Tensor:
        """The hint of each image in the batch; AttachError for a wrong number or size."""
        frames, given = self.context.total, len(self.hints)
        if given not in (1, frames):
            raise AttachError(
                f"{given} hints were given for {frames} frames: give one for each, or one image for all."
            )
        factor = 2 ** (len(self.net.config.conditioning_embedding_out_channels) - 1)
        size = tuple(side * factor for side in sample.shape[2:])
        if tuple(self.hints.shape[2:]) != size:
            raise AttachError(
                f"The hints are {self.hints.shape[3]}x{self.hints.shape[2]} pixels, but the clip is "
                f"{size[1]}x{size[0]}: resize them to it."
            )
        if given == 1:
            return self.hints.expand(len(sample), -1, -1, -1)
        return self.hints[self.context.images(len(sample))]

    def _acts(self, timestep: Tensor | float) -> bool:
        """Whether this step lies between `start` and `end`."""
        if self.start <= 0 and self.end >= 1:
            return True
        step, total = self._step(float(torch.as_tensor(timestep).flatten()[0]))
        return step / total >= self.start and (step + 1) / total <= self.end

    def _step(self, timestep: float) -> tuple[int, int]:
        """Number of the step and of all steps. Samplers of second order come to a timestep twice."""
        timesteps = [float(each) for each in self._pipeline.scheduler.timesteps]
        total = self._pipeline.num_timesteps or len(timesteps)
        timesteps = timesteps[len(timesteps) - total :]
        here = [number for number, each in enumerate(timesteps) if each == timestep]
        if not here:
            raise AttachError(f"The UNet is called at timestep {timestep:g}, which the sampler has not.")
        self._last_step = next((number for number in here if number > self._last_step), here[0])
        return self._last_step, total


def _behind_zeros(tensor: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(tensor), tensor])
