"""Sample clips during training: the base's stock pipeline with motion attached, on a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from stillmotion.atomic import durable
from stillmotion.diffusion.noise import video_noise
from stillmotion.diffusion.vae import decode_frames
from stillmotion.sampling.sample import sample
from stillmotion.training.denoiser import Denoiser
from stillmotion.training.engine.sheets import sheet_path
from stillmotion.video.clip import Clip, grid
from stillmotion.video.contact_sheet import tile
from stillmotion.video.pixels import WHITE

COLUMNS = 8
GAP = 2


def sample_sheet(
    denoiser: Denoiser,
    prompts: Sequence[str],
    folder: Path,
    step: int,
    frames: int,
    fps: float = 8.0,
    size: tuple[int, int] | None = None,
) -> Path:
    """Samples `frames` images per prompt with the present weights into step-N.png; gives its path.

    They are a clip where motion is attached, else so many stills; always from the same noise.
    """
    config = denoiser.config
    clips = [
        sample_clip(denoiser, prompt, frames, config.seed + number, denoiser.noise_alpha, size)
        for number, prompt in enumerate(prompts)
    ]
    path = sheet_path(folder, step)
    save_sheet(clips, path, fps)
    return path


def sample_clip(
    denoiser: Denoiser,
    prompt: str,
    frames: int,
    seed: int,
    noise_alpha: float = 0.0,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """`frames` images (frames, H, W, 3) of a prompt, by the sampler that the Animator has too.

    Args:
        denoiser: its pipeline draws, with what is attached to it, with the guidance of its config.
        prompt: what to draw.
        frames: a clip of so many where motion is attached, else so many stills.
        seed: decides the noise.
        noise_alpha: how much of a frame's noise goes on into the next.
        size: height and width in pixels; default: the resolution of the config.
    """
    config, pipeline = denoiser.config, denoiser.pipeline
    generator = torch.Generator().manual_seed(seed)
    height, width = size or (config.resolution, config.resolution)
    latents = sample(
        pipeline,
        denoiser.text.pipeline_arguments(prompt, guidance=config.validation_guidance > 1),
        video_noise(pipeline.vae, (frames, height, width), noise_alpha, generator),
        num_inference_steps=config.validation_inference_steps,
        guidance_scale=config.validation_guidance,
        generator=generator,
    )
    return decode_frames(pipeline.vae, latents)


def save_sheet(clips: Sequence[npt.NDArray[np.uint8]], path: Path, fps: float) -> None:
    """Writes `path` (.png: a row per clip, up to 8 frames of it) and beside it the moving clips (.webp)."""
    columns = np.linspace(0, len(clips[0]) - 1, min(COLUMNS, len(clips[0]))).round().astype(int)
    still = tile([frame for clip in clips for frame in clip[columns]], len(columns), GAP, WHITE)
    with durable(path) as unfinished:
        Image.fromarray(still).save(unfinished, format="PNG")
    moving = grid([Clip(frames, fps) for frames in clips], columns=len(clips), gap=GAP)
    moving.save(path.with_suffix(".webp"), overwrite=True)
