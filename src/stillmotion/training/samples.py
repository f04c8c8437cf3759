"""Sample clips during training: the base's stock pipeline with motion attached, on a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stillmotion.atomic import durable
from stillmotion.diffusion.noise import video_noise
from stillmotion.diffusion.vae import decode_frames
from stillmotion.foreign import printable
from stillmotion.sampling.sample import sample
from stillmotion.training.denoiser import Denoiser
from stillmotion.training.engine.sheet_paths import sheet_path
from stillmotion.video.clip import Clip, grid
from stillmotion.video.contact_sheet import labelled_sheet

COLUMNS = 8
"""images in a row of a sheet"""
GAP = 2

Switch = Callable[[], AbstractContextManager[None]]
"""Within what it gives, the base draws as if nothing had been trained on it."""


def sample_sheet(
    denoiser: Denoiser,
    prompts: Sequence[str],
    folder: Path,
    step: int,
    frames: int,
    fps: float = 8.0,
    size: tuple[int, int] | None = None,
    without: Switch | None = None,
) -> Path:
    """Samples with the present weights into step-N.png and .webp; gives the path of the first.

    Always from the same noise, so that the sheets of a run can be compared.

    Args:
        denoiser: the base, with what trains on it.
        prompts: one row each.
        folder: where the sheet is written.
        step: that it is of.
        frames: images of each prompt: a clip where motion is attached, else so many stills.
        fps: of the moving clips.
        size: height and width; default: the resolution of the config, square.
        without: switches off what trains, for the same images without it beside the others.
    """
    config = denoiser.config
    height, width = size or (config.side, config.side)

    def draw() -> list[npt.NDArray[np.uint8]]:
        return [
            sample_clip(denoiser, prompt, frames, config.seed + number, denoiser.noise_alpha, (height, width))
            for number, prompt in enumerate(prompts)
        ]

    blocks = {"": draw()}
    if without is not None:
        key = (tuple(prompts), frames, height, width)
        if key not in denoiser.untrained_samples:  # the base stays, so they do
            with without():
                denoiser.untrained_samples[key] = draw()
        blocks = {"with": blocks[""], "without": denoiser.untrained_samples[key]}
    path = sheet_path(folder, step)
    save_sheet(f"step {step}", prompts, blocks, path, fps)
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
    height, width = size or (config.side, config.side)
    latents = sample(
        pipeline,
        denoiser.text.pipeline_arguments(prompt, guidance=config.validation_guidance > 1),
        video_noise(pipeline.vae, (frames, height, width), noise_alpha, generator),
        num_inference_steps=config.validation_inference_steps,
        guidance_scale=config.validation_guidance,
        generator=generator,
    )
    return decode_frames(pipeline.vae, latents)


def save_sheet(
    title: str, prompts: Sequence[str], blocks: Mapping[str, Sequence[np.ndarray]], path: Path, fps: float
) -> None:
    """Writes `path` (.png: a row for each prompt, up to 8 images in it) and the moving clips (.webp).

    Args:
        title: of the sheet.
        prompts: one for each row.
        blocks: clips (frames, H, W, 3) for each prompt, by name; several blocks stand side by side.
        path: ends in .png.
        fps: of the moving clips, in which the blocks stand below each other.
    """
    length = len(next(iter(blocks.values()))[0])
    shown = np.linspace(0, length - 1, min(max(1, COLUMNS // len(blocks)), length)).round().astype(int)
    columns = [f"{name} {number + 1}".strip() for name in blocks for number in shown]
    rows = [
        (printable(prompt), [frame for clips in blocks.values() for frame in clips[row][shown]])
        for row, prompt in enumerate(prompts)
    ]
    with durable(path) as unfinished:
        labelled_sheet(title, columns, rows).save(unfinished, format="PNG")
    moving = grid(
        [Clip(clip, fps) for clips in blocks.values() for clip in clips], columns=len(prompts), gap=GAP
    )
    moving.save(path.with_suffix(".webp"), overwrite=True)
