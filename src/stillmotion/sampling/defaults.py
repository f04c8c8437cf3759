"""Defaults of requests: those of the motion's family, or of a base that draws stills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillmotion.diffusion.vae import pixels_per_latent
from stillmotion.motion.families import UNKNOWN, MotionFamily

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline

STILL_DEFAULTS: dict[str, Any] = {
    "frames": 1,
    "fps": 8.0,
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "scheduler": "ddim",
    "noise_alpha": 0.0,
}
"""What a base without motion draws when nothing else is said."""


def family_defaults(family: MotionFamily | None, pipeline: Pipeline) -> dict[str, Any]:
    """Fields of a request as the motion's family has them, stills without one.

    Where the family says nothing of the size, it is that of the pipeline's UNet.
    """
    side = pipeline.unet.config.sample_size * pixels_per_latent(pipeline.vae)
    size = {"width": side, "height": side}
    if family is None:
        return STILL_DEFAULTS | size
    row: dict[str, Any] = STILL_DEFAULTS | size | UNKNOWN.sampling.said() | family.sampling.said()
    row["noise_alpha"] = family.schedule.noise_alpha or 0.0
    row["frames"] = min(row["frames"], family.config.positions)
    return row
