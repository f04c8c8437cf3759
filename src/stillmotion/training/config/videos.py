"""Settings of runs that learn from clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from stillmotion.datasets.frame_sampling import Span, min_length
from stillmotion.training.config.shared import BATCH, MANY, SIDE, Betas, DenoiseConfig, InitialLora

if TYPE_CHECKING:
    from typing_extensions import Self


class VideoConfig(DenoiseConfig):
    """Clips with captions."""

    videos: Path = Field(
        description="folder of clips with captions in .txt files beside them, a WebVid CSV, or JSONL"
    )
    video_folder: Path | None = Field(
        None, description="where the files of a CSV or JSONL are; default: beside it"
    )
    resolution: int | None = Field(
        None,
        ge=8,
        le=SIDE,
        description="clips are resized and cut to a square of so many pixels; default: as the base draws",
    )

    @property
    def source(self) -> Path:
        """Where the clips come from, in messages."""
        return self.videos

    @property
    def needed(self) -> int:
        """Frames that a clip must have to be of use."""
        return 1


class ClipConfig(VideoConfig):
    """Clips with captions, and which of their frames make a sample."""

    frames: int = Field(16, ge=2, le=BATCH, description="frames of a training clip")
    stride: float = Field(4, gt=0, description="step between its frames, in frames of the video")
    span: Span = Field(
        "stride", description="stride: frames STRIDE apart; whole: evenly over the whole video"
    )
    loop: bool = Field(
        False, description="the videos are closed loops: samples may run over the end into the start"
    )
    beta_schedule: Betas | None = Field(
        None, description="noise schedule; default: that of the given motion, linear for fresh motion"
    )
    beta_start: float | None = Field(
        None, gt=0, lt=1, description="first beta; default: that of the motion, 0.00085 for fresh motion"
    )
    beta_end: float | None = Field(
        None, gt=0, lt=1, description="last beta; default: that of the motion, 0.012 for fresh motion"
    )
    noise_alpha: float | None = Field(
        None,
        ge=0,
        description="how much of a frame's noise goes on into the next: 0 nothing, 2 most of it; default: "
        "that of the given motion, 0 for fresh motion",
    )

    @property
    def needed(self) -> int:
        return min_length(self.frames, self.stride, self.loop, self.span)


class MotionTrainConfig(ClipConfig):
    """Training a motion module on clips with captions: the defaults are the paper's recipe."""

    motion: str | None = Field(
        None, description="motion weights to start from; default: fresh ones that fit the base"
    )
    domain_adapter: Path | None = Field(
        None, description="image LoRA that is on while motion trains (see train domain-adapter); stays frozen"
    )
    domain_adapter_scale: float = Field(1.0, description="how strongly the domain adapter acts")
    positions: int = Field(
        32, ge=2, le=BATCH, description="fresh weights: the longest clip that they can animate in one pass"
    )
    mid_block: bool | None = Field(
        None,
        description="fresh weights: a module in the mid block too (as v2); default: if the base has a place",
    )
    local_init: bool = Field(
        False,
        description="start with half of the heads attending to near frames: their order is learnt much "
        "sooner",
    )
    motion_norm: Literal["per-frame", "pooled"] = Field(
        "per-frame",
        description="fresh weights: statistics of the motion norms, per frame or pooled over the clip",
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.frames > self.positions and self.motion is None:
            raise ValueError(
                f"frames is {self.frames}, but positions ({self.positions}) must be at least that"
            )
        return self


class DomainAdapterConfig(VideoConfig):
    """Training an image LoRA on single frames of the videos (AnimateDiff v3, first stage)."""

    batch_size: int = Field(4, ge=1, le=BATCH, description="images per process and pass")
    rank: int = Field(32, ge=1, le=SIDE, description="size of the adapter; AnimateDiff v3 has 128")
    alpha: float | None = Field(
        None, gt=0, description="the adapter acts at ALPHA / RANK; default: at 1, as AnimateDiff's"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the adapter's inputs left out in training")
    initial_lora: InitialLora = None
    max_train_steps: int = Field(2000, ge=1, le=MANY, description="optimizer steps of the whole run")
