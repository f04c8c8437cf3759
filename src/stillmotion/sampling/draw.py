"""One clip from a complete request: noise, scheduler, text and what goes on the pipeline, for the sampler."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillmotion.diffusion.noise import video_noise
from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.diffusion.schedulers import check_steps, make_scheduler
from stillmotion.diffusion.text import Conditioner
from stillmotion.request.request import CompleteRequest
from stillmotion.sampling.calls import StepCallback
from stillmotion.sampling.conditions.base import Run, attached, prepare
from stillmotion.sampling.progress import ProgressCallback
from stillmotion.sampling.sample import sample

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline


def draw(
    request: CompleteRequest,
    pipeline: Pipeline,
    schedule: NoiseSchedule | None,
    attachments: AbstractContextManager[Any],
    *,
    words: Sequence[str],
    condition_models: MutableMapping[Hashable, Any],
    causes: Callable[[], str],
    on_progress: ProgressCallback,
    callback: StepCallback | None,
) -> Tensor:
    """Latents (frames, c, h, w) float32 on the CPU.

    Args:
        request: a complete one that these models can draw.
        pipeline: any diffusers pipeline that draws from noise.
        schedule: what the motion was trained on; used where motion acts.
        attachments: puts motion and LoRAs on the pipeline for its block.
        words: textual inversions of the pipeline.
        condition_models: models that conditions keep from clip to clip.
        causes: says why numbers may have run away.
        on_progress: called as ("sampling", steps done, all steps).
        callback: called after each step as in diffusers' pipelines.
    """
    generator = torch.Generator("cpu").manual_seed(request.seed)
    steering = prepare(Run(pipeline, request, condition_models))
    size = (request.frames, request.height, request.width)
    noise = video_noise(pipeline.vae, size, request.noise_alpha, generator)
    noised = NoiseSchedule.from_config(pipeline.scheduler.config)
    moves = request.frames > 1 or request.single_frame_motion == "run"
    if schedule is not None and moves:
        noised = schedule.over_base(noised)
    scheduler = make_scheduler(request.scheduler, noised)
    steps, guidance = request.num_inference_steps, request.guidance_scale
    check_steps(request.scheduler, scheduler, steps)
    on_progress("sampling", 0, steps)
    with attachments, attached(steering.attachments, pipeline, request.frames):
        text = Conditioner(pipeline, words=words).pipeline_arguments(
            request.prompt, request.negative_prompt, guidance > 1, request.clip_skip
        )
        return sample(
            pipeline,
            text,
            noise if steering.initial_latents is None else steering.initial_latents,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            scheduler=scheduler,
            on_step=partial(on_progress, "sampling"),
            causes=causes,
            arguments=steering.pipeline_arguments,
            callback=callback,
        )
