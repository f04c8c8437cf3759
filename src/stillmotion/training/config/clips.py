"""Settings of runs that learn from clips. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from stillmotion.data.sampling import Span
from stillmotion.training.config.shared import Betas, DenoiseConfig

if TYPE_CHECKING:
    from typing_extensions import Self


class ClipConfig(DenoiseConfig):
    """Clips with captions, and which of their frames make a sample."""

    videos: Path = Field(
        description="folder of clips with captions in .txt files beside them, a WebVid CSV, or JSONL"
    )
    video_folder: Path | None = Field(
        None, description="where the files of a CSV or JSONL are; default: beside it"
    )
    cache: Path | None = Field(
        None, description="folder for latents; may be shared by runs; default: OUTPUT/latents"
    )
    resolution: int = Field(256, ge=8, description="clips are resized and cut to a square of so many pixels")
    frames: int = Field(16, ge=2, description="frames of a training clip")
    stride: float = Field(4, gt=0, description="step between its frames, in frames of the video")
    span: Span = Field(
        "stride", description="stride: frames STRIDE apart; whole: evenly over the whole video"
    )
    loop: bool = Field(
        False, description="the videos are closed loops: samples may run over the end into the start"
    )
    beta_schedule: Betas = Field("linear", description="noise schedule, whatever the base had")
    beta_start: float = Field(0.00085, gt=0, lt=1, description="first beta")
    beta_end: float = Field(0.012, gt=0, lt=1, description="last beta")


class MotionTrainConfig(ClipConfig):
    """Training a motion module on clips with captions: the defaults are the paper's recipe."""

    motion: str | None = Field(
        None, description="motion weights to start from; default: fresh ones that fit the base"
    )
    positions: int = Field(
        32, ge=2, description="fresh weights: the longest clip that they can animate in one pass"
    )
    mid_block: bool | None = Field(
        None,
        description="fresh weights: a module in the mid block too (as v2); default: if the base has a place",
    )
    motion_norm: Literal["frame", "clip"] = Field(
        "frame",
        description="fresh weights: statistics of the motion norms, per frame or pooled over the clip",
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.frames > self.positions and self.motion is None:
            raise ValueError(
                f"frames is {self.frames}, but positions ({self.positions}) must be at least that"
            )
        return self
