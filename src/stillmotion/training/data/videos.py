"""From clips to latents on disk, each process its part: what can be used, what cannot and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from stillmotion.datasets.frame_sampling import frame_indices
from stillmotion.datasets.latent_cache import CachedClip, LatentCache, Read
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item, same_captions
from stillmotion.diffusion.text import note_cut_captions
from stillmotion.diffusion.vae import SCALE_FIELDS, scaled_encode
from stillmotion.errors import DataError
from stillmotion.runtime.precision import training_dtype
from stillmotion.training.config import ClipConfig, DenoiseConfig, VideoConfig
from stillmotion.training.engine.progress import Progress
from stillmotion.training.engine.rng import SampleRng

SampledFrames = tuple[Tensor, tuple[str, ...]]
"""latents (f, c, h, w) and the captions of their clip"""


def prepare_clips(
    config: VideoConfig,
    items: Sequence[Item],
    report: Report,
    vae: Any,
    accelerator: Accelerator,
    log: Callable[[str], None],
    read: Read | None = None,
) -> list[CachedClip]:
    """The usable clips, in the same order on every process; DataError when there is none.

    `read` gives the pixels of an item where they are not those of the file.
    """
    clips = cache_latents(config, items, report, vae, accelerator, log, read)
    usable = [clip for clip in clips if _long_enough(clip, config.needed, report)]
    tell_skipped(report, config.output, accelerator, log)
    hint = ""
    if config.needed > 1:
        hint = " A smaller stride (--stride), fewer frames (--frames) or --span whole need shorter clips."
    if not usable:
        raise DataError(
            f"None of the {len(items)} clips of {config.source} can be used. {report.sentence()}{hint}"
        )
    if hint and len(usable) < len(clips):
        log(hint.strip())
    return usable


def cache_latents(
    config: DenoiseConfig,
    items: Sequence[Item],
    report: Report,
    vae: Any,
    accelerator: Accelerator,
    log: Callable[[str], None],
    read: Read | None = None,
    noun: str = "clips",
) -> list[CachedClip]:
    """The readable items with their latents, in the same order on every process; the others are reported."""
    folder = config.cache or config.output / "latents"
    dtype = training_dtype(config.precision, accelerator.device)
    encode = partial(scaled_encode, vae, dtype=dtype)
    cache = LatentCache(folder, encode, fingerprint(vae, dtype), config.side, read=read)
    _encode(cache, items, report, accelerator, log, noun)
    return [clip for clip in map(cache.ready, _readable(items, report)) if clip is not None]


def tell_skipped(report: Report, output: Path, accelerator: Accelerator, log: Callable[[str], None]) -> None:
    """Says how many files could not be used and lists them in skipped.jsonl."""
    if report.skipped:
        listing = output / "skipped.jsonl"
        if accelerator.is_main_process:
            report.save(listing)
        log(f"{report.sentence()} All are listed in {listing}.")


def _encode(
    cache: LatentCache,
    items: Sequence[Item],
    report: Report,
    accelerator: Accelerator,
    log: Callable[[str], None],
    noun: str,
) -> None:
    """Each process encodes its part; afterwards all know all failures."""
    mine = items[accelerator.process_index :: accelerator.num_processes]
    progress = Progress(log, "latents", noun, len(mine))
    encoded = cache.build(mine, report, progress)
    if accelerator.num_processes > 1:
        for path, why in gather_object(list(report.skipped.items())):
            report.skip(path, why)
        accelerator.wait_for_everyone()
    if encoded:
        log(f"Latents of {encoded} {noun} computed in {progress.took} and kept in {cache.folder}.")


def _readable(items: Sequence[Item], report: Report) -> list[Item]:
    return [item for item in items if str(item.path) not in report.skipped]


def _long_enough(clip: CachedClip, wanted: int, report: Report) -> bool:
    if clip.length < wanted:
        report.skip(clip.item.path, f"too short: {clip.length} frames, {wanted} needed")
    return clip.length >= wanted


def note_captions(clips: Sequence[CachedClip], pipeline: Any, log: Callable[[str], None]) -> None:
    """Says when the captions of several files are all the same, and when some are too long."""
    note_cut_captions(pipeline, (caption for clip in clips for caption in clip.item.captions), log)
    caption = same_captions(clip.item for clip in clips)
    if caption is not None and len({clip.item.path for clip in clips}) > 1:
        log(f"Note: all captions are {caption!r}; the text will not steer what is learnt.")


def key_of(clips: Sequence[CachedClip]) -> str:
    """Changes with the clips and their captions, not with the folder they are in."""
    facts = [(clip.file.name, clip.item.captions) for clip in clips]
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()


def sample_fps(clips: Sequence[CachedClip], config: ClipConfig) -> float:
    """Frames per second of samples: the videos' own, divided by the step between frames."""
    whole = config.span == "whole"
    rates = sorted(clip.fps / (clip.length / config.frames if whole else config.stride) for clip in clips)
    return round(rates[len(rates) // 2], 3)


def sample_frames(rng: SampleRng, clips: Sequence[CachedClip], config: ClipConfig) -> SampledFrames:
    """The frames of one clip that a sample is made of, from a random start."""
    clip, start = clips[rng.item(len(clips))], rng.uniform("start")
    indices = frame_indices(clip.length, config.frames, config.stride, start, config.loop, config.span)
    return clip.latents(indices), clip.item.captions


def fingerprint(vae: Any, dtype: torch.dtype) -> str:
    """Names a VAE by weights, scale and precision: latents of another one are never taken for its own."""
    scaling, shift, *moments = (vae.config.get(name) for name in SCALE_FIELDS)
    facts = f"{scaling} {shift} {dtype}" + (f" {moments}" if None not in moments else "")
    digest = hashlib.blake2b(facts.encode(), digest_size=12)
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
