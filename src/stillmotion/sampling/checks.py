"""What a complete request asks for against what its models can do, before anything is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stillmotion.attachments.motion import check_frames
from stillmotion.diffusion.vae import pixels_per_latent
from stillmotion.errors import RequestError
from stillmotion.request.request import CompleteRequest

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline
    from stillmotion.motion.module import MotionModules

USUAL = {"guidance_scale": (7.5, 50), "motion_scale": (1, 5), "noise_alpha": (1.5, 100)}
"""Field -> the usual value, and above what it is named as a cause when numbers run away."""


def check_request(request: CompleteRequest, pipeline: Pipeline, motion: MotionModules | None) -> None:
    """RequestError or AttachError for a complete request that these models cannot draw."""
    if motion is not None:
        check_frames(motion.spec, request.frames)
    elif request.frames > 1:
        raise RequestError(
            f"{request.frames} frames need motion, but only a text-to-image model was loaded: load "
            "motion that fits it (`motion=FILE`), or ask for 1 frame."
        )
    elif request.single_frame_motion == "run":
        raise RequestError(
            "single_frame_motion is run, but only a text-to-image model was loaded: load motion that fits it "
            "(`motion=FILE`), or leave it out."
        )
    factor = pixels_per_latent(pipeline.vae)
    if request.width % factor or request.height % factor:
        raise RequestError(
            f"{request.width}x{request.height} pixels cannot be drawn: both must be multiples of {factor}."
        )
    encoder = getattr(pipeline, "text_encoder", None)
    if request.clip_skip is None or encoder is None:
        return
    last = 1 if getattr(pipeline, "text_encoder_2", None) is not None else 0  # SDXL skips one itself
    most = encoder.config.num_hidden_layers - last
    if request.clip_skip > most:
        raise RequestError(
            f"clip_skip is {request.clip_skip}, but the text encoder has layers for at most {most} "
            f"(`clip_skip={most}`)."
        )


def suspects(request: CompleteRequest, dtype: torch.dtype, with_loras: bool) -> str:
    """What may have made the numbers run away, and what to do.

    Args:
        request: what was drawn.
        dtype: precision of the UNet.
        with_loras: whether any LoRA was attached.
    """
    unusual = [
        f"{name} is {getattr(request, name):g} ({usual:g} is usual)"
        for name, (usual, most) in USUAL.items()
        if getattr(request, name) > most
    ]
    if unusual:
        return f"{' and '.join(unusual)}, which is too much."
    if dtype == torch.float16:
        return "float16 holds no number above 65504; try bfloat16 or float32 (`dtype='float32'`)."
    if with_loras:
        return "a LoRA may be too strong or damaged; try smaller weights, or leave LoRAs out one by one."
    return "the base or the motion may be damaged, or they do not fit each other; try another file."
