"""Settings of `Trainer`: the researcher's own dataset and module."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stillmotion.training.config.shared import SIDE, DenoiseConfig


class TrainerConfig(DenoiseConfig):
    """How a `Trainer` trains; only `output` is needed.

    The noise schedule is that of the motion (a `MotionModel`) or of the pipeline, where nothing is said.
    """

    usual_rate: ClassVar[float] = 1e-4

    base: str = Field("", description="name of the pipeline, where one is loaded by its name")
    resolution: int | None = Field(
        None, ge=8, le=SIDE, description="width and height of the samples; default: those of the first clip"
    )
    fps: float = Field(8.0, gt=0, description="frames per second of the samples, kept with the motion")
    noise_alpha: float | None = Field(
        None, ge=0, description="how much of a frame's noise goes on into the next; default: as the motion"
    )
