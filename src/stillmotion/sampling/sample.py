"""The sampler: noise and encoded text become latents, by the pipeline's own call. There is no other.

The Animator, the samples of training and DreamBooth's images of the class all draw with it. What is attached
to the UNet or the text encoders (motion, LoRAs, controls) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stillmotion.attachments.precision import float32_outside
from stillmotion.diffusion.pipeline import Pipeline
from stillmotion.diffusion.vae import pixels_per_latent
from stillmotion.errors import SamplingError
from stillmotion.sampling.calls import StepCallback


def sample(
    pipeline: Pipeline,
    text: Mapping[str, Tensor],
    noise: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    generator: torch.Generator,
    scheduler: Any = None,
    on_step: Callable[[int, int], None] | None = None,
    causes: Callable[[], str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Latents (f, c, h, w), float32 on the CPU: one clip where motion is attached, else so many stills.

    Between steps they are float32, whatever the UNet computes in. Nothing is left on the pipeline, also after
    an exception. SamplingError as soon as they are no longer finite.

    Args:
        pipeline: any diffusers pipeline that draws from noise.
        text: the prompt, or one for each frame, as `Conditioner.pipeline_arguments` gives it.
        noise: (f, c, h, w) standard normal noise; it decides frames and size.
        num_inference_steps: denoising steps.
        guidance_scale: how much the prompt counts; 1 and less is without guidance.
        generator: draws the noise that some schedulers add at each step.
        scheduler: used in place of the pipeline's own.
        on_step: called with steps done and all steps.
        causes: says why numbers may have run away, for the SamplingError.
        arguments: others of the pipeline's call, such as conditions need.
        callback: called at the end of each step as diffusers' `callback_on_step_end`.
    """
    factor = pixels_per_latent(pipeline.vae)

    def stepped(caller: Any, index: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not tensors["latents"].isfinite().all():
            raise SamplingError(
                f"At step {index + 1} of {caller.num_timesteps} the latents are no longer finite (nan or "
                f"inf), so every frame would be black{'.' if causes is None else f': {causes()}'}"
            )
        if on_step is not None:
            on_step(index + 1, caller.num_timesteps)
        return tensors if callback is None else callback(caller, index, time, tensors) or tensors

    with _scheduled(pipeline, scheduler), float32_outside(pipeline.unet):
        latents: Tensor = pipeline(
            **text,
            height=noise.shape[-2] * factor,
            width=noise.shape[-1] * factor,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=len(noise) // len(text["prompt_embeds"]),
            latents=noise,
            generator=generator,
            output_type="latent",
            callback_on_step_end=stepped,
            **(arguments or {}),
        ).images
    return latents.float().cpu()


@contextmanager
def _scheduled(pipeline: Pipeline, scheduler: Any) -> Iterator[None]:
    """The pipeline has this scheduler for one block, if it is any."""
    before = pipeline.scheduler
    pipeline.scheduler = before if scheduler is None else scheduler
    try:
        yield
    finally:
        pipeline.scheduler = before
