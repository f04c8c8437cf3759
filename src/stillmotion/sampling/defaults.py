"""Defaults of requests: those of the motion's family, or of a base that draws stills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillmotion.diffusion.vae import pixels_per_latent
from stillmotion.motion.config import MotionConfig
from stillmotion.motion.families import FAMILIES
from stillmotion.request.request import FILLED_BY_MODEL

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline

STILL_DEFAULTS = {
    "frames": 1,
    "fps": 8.0,
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "scheduler": "ddim",
    "noise_alpha": 0.0,
}
"""What a base without motion draws when nothing else is said."""

DEFAULT_SIZE = (MotionConfig("").width, MotionConfig("").height)


def family_defaults(config: MotionConfig | None, pipeline: Pipeline) -> dict[str, Any]:
    """Fields of a request as the motion's family has them, stills without one.

    Where the family says nothing of the size, it is that of the pipeline's UNet.
    """
    side = pipeline.unet.config.sample_size * pixels_per_latent(pipeline.vae)
    size = {"width": side, "height": side}
    if config is None:
        return STILL_DEFAULTS | size
    row = {name: getattr(config, name) for name in FILLED_BY_MODEL}
    row["frames"] = min(config.frames, config.positions)
    unsaid = config.name not in FAMILIES and (config.width, config.height) == DEFAULT_SIZE
    return row | size if unsaid else row
