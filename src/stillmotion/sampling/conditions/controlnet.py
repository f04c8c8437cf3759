"""ControlNet: depth, edges, poses or another image of every frame steer what is drawn there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator
from typing_extensions import Self

from stillmotion.errors import RequestError
from stillmotion.request.fields import field
from stillmotion.sampling.conditions.base import Condition, Contribution, Run

if TYPE_CHECKING:
    from torch import Tensor, nn

BLACK = (0, 0, 0)
"""Behind transparent hints: edges and poses are drawn on black."""


class ControlNet(Condition):
    """A ControlNet and the hints it follows: `ControlNet("depth.safetensors", "depth/", scale=0.7)`."""

    flag: ClassVar[str] = "--control"
    help: ClassVar[str] = "steer each frame by an image of it, through a ControlNet"
    example: ClassVar[str] = "depth.safetensors:depth/,scale=0.8,from=0,to=0.6"
    first: ClassVar[tuple[str, ...]] = ("file", "hints")

    file: str = field(
        ...,
        "ControlNet that fits the base: a file, folder or hub name",
        "it must be a name or path",
        "depth.safetensors",
        opens="weights",
    )
    hints: str = field(
        ...,
        "what it follows (depth, edges, poses): a folder of images or a video with as many frames as the "
        "clip, or one image for all; resized to the clip",
        "it must be a path",
        "depth/",
        opens="images",
    )
    scale: float = field(
        1.0, "how strongly", "it must be a number from 0 to 10", "0.8", ge=0, le=10, allow_inf_nan=False
    )
    start: float = field(
        0.0,
        "part of the steps from which on it acts",
        "it must be a number from 0 to 1",
        "0",
        "from",
        ge=0,
        le=1,
    )
    end: float = field(
        1.0,
        "part of the steps up to which it acts",
        "it must be a number from 0 to 1",
        "0.6",
        "to",
        ge=0,
        le=1,
    )
    guess_mode: bool = field(
        False, "follow the hints even without a prompt", "it must be yes or no", "yes", "guess"
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            file: str | os.PathLike[str],
            hints: str | os.PathLike[str],
            *,
            scale: float = 1.0,
            start: float = 0.0,
            end: float = 1.0,
            guess_mode: bool = False,
        ) -> None: ...

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.end:
            raise RequestError(
                f"A ControlNet acts from {self.start:g} to {self.end:g}, but must begin before it ends: give "
                "from=0,to=1."
            )
        return self

    def prepare(self, run: Run) -> Contribution:
        """The net on the pipeline with a hint for each frame; `Mismatch` if it does not fit the base."""
        from stillmotion.attachments.control import ControlAttachment

        hints = self._read(run)
        net = run.model(("controlnet", os.path.abspath(self.file)), lambda: self._load(run))
        attachment = ControlAttachment(net, hints, self.scale, self.start, self.end, self.guess_mode)
        return Contribution(attachments=(attachment,))

    def _load(self, run: Run) -> nn.Module:
        from stillmotion.checkpoints.controlnet import load_controlnet

        unet = run.pipeline.unet
        return load_controlnet(self.file, unet, unet.dtype).to(unet.device)

    def _read(self, run: Run) -> Tensor:
        """(frames or 1, 3, height, width) in 0..1, resized as diffusers' ControlNet pipelines do."""
        from diffusers.image_processor import VaeImageProcessor
        from PIL import Image

        from stillmotion.video import open_frames

        source = open_frames(Path(self.hints).expanduser(), BLACK)
        frames = run.request.frames
        if len(source) not in (1, frames):
            raise RequestError(
                f"{self.hints} has {len(source)} images, but the clip has {frames} frames: give one image "
                f"for each frame, one for all, or `frames={len(source)}`."
            )
        images = [Image.fromarray(frame) for frame in source.frames()]
        processor = VaeImageProcessor(do_normalize=False, do_convert_rgb=True, vae_scale_factor=1)
        tensor: Tensor = processor.preprocess(images, run.request.height, run.request.width)
        return tensor.to(run.pipeline.unet.device)
