"""Settings of motion LoRAs: from videos, from one reference video, or of a camera move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from stillmotion.datasets.camera_moves import AMOUNTS, MoveName
from stillmotion.datasets.frame_sampling import Span
from stillmotion.training.config.shared import BATCH, MANY, SIDE, InitialLora
from stillmotion.training.config.videos import ClipConfig

if TYPE_CHECKING:
    from typing_extensions import Self


class MotionLoraConfig(ClipConfig):
    """Training low-rank changes of a motion module; motion and base stay frozen."""

    videos: Path | None = Field(  # type: ignore[assignment]
        None,
        description="folder of clips with captions in .txt files beside them, a WebVid CSV, or JSONL; "
        "with --camera of stills too",
    )
    reference: Path | None = Field(None, description="the one video whose motion is learnt; needs --prompt")
    prompt: str | None = Field(None, description="what is to be seen in the reference video")
    camera: MoveName | None = Field(
        None, description="learn this move of the camera, made from the stills or clips of --videos"
    )
    camera_amount: float | None = Field(
        None,
        gt=0,
        description="how far the camera goes in a clip; default: zoom by 0.25 (a quarter), pan and tilt by "
        "0.2 of the width, roll by 20 degrees",
    )
    camera_variants: int = Field(
        4,
        ge=1,
        le=BATCH,
        description="shots made of each still or clip, all a bit different; every second one shows half of "
        "the move, learnt at half the weight",
    )
    static_input_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="part of the samples whose noisy input stands still, so that the LoRA learns to make the "
        "move and not only to go on with one that it sees. min_timestep (500 or more) and max_timestep are "
        "then theirs; the rest see the move, at all timesteps",
    )

    motion: str | None = Field(
        None, description="motion weights that the LoRA is for; default: those inside the base"
    )
    rank: int = Field(32, ge=1, le=SIDE, description="size of the LoRA; AnimateDiff's have 64")
    alpha: float | None = Field(
        None, gt=0, description="the LoRA acts at ALPHA / RANK; default: at 1, as AnimateDiff's"
    )
    initial_lora: InitialLora = None
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the LoRA's inputs left out in training")
    feed_forward: bool = Field(
        False, description="change the feed-forward layers too, as MotionDirector does"
    )
    debias_weight: float = Field(
        1.0, ge=0, description="weight of the loss in which what all frames share counts less; 0 = none"
    )

    usual_rate: ClassVar[float] = 2e-4
    span: Span = Field("whole", description="stride: frames STRIDE apart; whole: evenly over the whole video")
    learning_rate: float = Field(2e-4, gt=0, description="after the warm-up")
    max_train_steps: int = Field(500, ge=1, le=MANY, description="optimizer steps of the whole run")
    checkpoint_steps: int = Field(100, ge=1, description="a checkpoint every so many steps")
    validation_steps: int = Field(250, ge=0, description="sample images every so many steps; 0 = never")

    @property
    def source(self) -> Path:
        return self.reference or self.videos  # type: ignore[return-value]

    @property
    def needed(self) -> int:
        return self.frames if self.camera else super().needed

    @property
    def amount(self) -> float:
        """`camera_amount`, or what is usual for such a move."""
        return self.camera_amount or AMOUNTS[str(self.camera).partition("-")[0]]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.videos is None) == (self.reference is None):
            raise ValueError(
                "a motion LoRA learns from one source: give videos (a folder of clips), or reference and "
                "prompt (one video), or camera and videos (a move made from stills or clips)"
            )
        if self.reference is not None and not self.prompt:
            raise ValueError("reference needs prompt, in words what is to be seen in the video")
        if self.reference is None and self.prompt is not None:
            raise ValueError("prompt is for reference; clips in videos have captions of their own")
        if self.reference is not None and self.camera is not None:
            raise ValueError("camera makes its clips from videos, not from reference: give one of the two")
        if self.camera is not None and (self.span != "whole" or self.loop):
            raise ValueError("camera makes open clips of FRAMES frames: leave out span and loop")
        for name in ("camera_amount", "static_input_fraction"):
            if self.camera is None and getattr(self, name):
                raise ValueError(f"{name} needs camera, the name of a move such as zoom-in")
        return self
