"""Sample clips during training: the base's stock pipeline with motion attached, on a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stillmotion.atomic import durable
from stillmotion.attachments.precision import float32_outside
from stillmotion.diffusion.noise import video_noise
from stillmotion.diffusion.text import Conditioner
from stillmotion.diffusion.vae import decode_frames
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
    height, width = size or (config.resolution, config.resolution)
    options: dict[str, Any] = {
        "noise_alpha": denoiser.noise_alpha,
        "width": width,
        "height": height,
        "guidance_scale": config.validation_guidance,
        "num_inference_steps": config.validation_inference_steps,
    }
    clips = [
        sample_clip(denoiser.pipeline, denoiser.text, prompt, frames, config.seed + number, **options)
        for number, prompt in enumerate(prompts)
    ]
    path = sheet_path(folder, step)
    save_sheet(clips, path, fps)
    return path


@torch.no_grad()
def sample_clip(
    pipeline: Any,
    conditioner: Conditioner,
    prompt: str,
    frames: int,
    seed: int,
    *,
    width: int,
    height: int,
    noise_alpha: float = 0.0,
    **options: Any,
) -> np.ndarray:
    """One clip (frames, H, W, 3) uint8 from `video_noise`; `options` are those of the pipeline's call."""
    names = ("prompt_embeds", "pooled_prompt_embeds")
    texts = zip(names, conditioner.encode(prompt), conditioner.encode(""), strict=False)
    arguments: dict[str, Any] = {}
    for name, wanted, empty in texts:
        arguments |= {name: wanted, f"negative_{name}": empty}
    generator = torch.Generator().manual_seed(seed)
    noise = video_noise(pipeline.vae, (frames, height, width), noise_alpha, generator)
    arguments |= {"num_images_per_prompt": frames, "latents": noise.to(arguments[names[0]].dtype)}
    with float32_outside(pipeline.unet):
        latents = pipeline(**arguments, **options, width=width, height=height, output_type="latent").images
    return decode_frames(pipeline.vae, latents.float())


def save_sheet(clips: Sequence[np.ndarray], path: Path, fps: float) -> None:
    """Writes `path` (.png: a row per clip, up to 8 frames of it) and beside it the moving clips (.webp)."""
    columns = np.linspace(0, len(clips[0]) - 1, min(COLUMNS, len(clips[0]))).round().astype(int)
    still = tile([frame for clip in clips for frame in clip[columns]], len(columns), GAP, WHITE)
    with durable(path) as unfinished:
        Image.fromarray(still).save(unfinished, format="PNG")
    moving = grid([Clip(frames, fps) for frames in clips], columns=len(clips), gap=GAP)
    moving.save(path.with_suffix(".webp"), overwrite=True)
