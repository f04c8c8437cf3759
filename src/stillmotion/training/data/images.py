"""The images of a run: prepared once, drawn in batches of one size.

order of an epoch    every image once (or as often as its folder says), batches of one bucket
sample n             place n mod N of epoch n div N, mirrored or not: a function of (seed, n)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from accelerate import Accelerator

from stillmotion.datasets.buckets import Size, bucket_sizes, fitting_step, grouped
from stillmotion.datasets.images import ImageItem, measured, read_image
from stillmotion.datasets.latent_cache import CachedClip
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item, same_captions
from stillmotion.diffusion.text import note_cut_captions
from stillmotion.errors import DataError, TrainingError
from stillmotion.training.config.images import ImageConfig
from stillmotion.training.data.videos import cache_latents, key_of, tell_skipped
from stillmotion.training.denoiser import Denoiser, Sample
from stillmotion.training.engine.rng import SampleRng, shuffled

MAX_SAMPLES = 4


class ImageDataset:
    """Images with latents on disk; `found` are items and how often an epoch shows each."""

    def __init__(
        self,
        config: ImageConfig,
        found: Sequence[tuple[Item, int]],
        report: Report,
        denoiser: Denoiser,
        accelerator: Accelerator,
        log: Callable[[str], None],
    ) -> None:
        self.config, self.denoiser = config, denoiser
        self.batch = config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        images = list(measured(found, _sizes(config, denoiser), config.flip, report))
        vae = denoiser.pipeline.vae
        items = list({p.item.path: p.item for p in images}.values())
        ready = cache_latents(config, items, report, vae, accelerator, log, read_image, "images")
        latents = {clip.item.path: clip for clip in ready}
        self.images = [image for image in images if image.item.path in latents]
        self.clips = [
            replace(latents[p.item.path], item=p.item) for p in self.images for _ in range(p.repeats)
        ]
        tell_skipped(report, config.output, accelerator, log)
        if not self.clips:
            raise DataError(f"None of the {len(found)} images can be used. {report.sentence()}")
        captions = (caption for image in self.images for caption in image.item.captions)
        note_cut_captions(denoiser.pipeline, captions, log)
        self._buckets = [image.bucket for image in self.images for _ in range(image.repeats)]
        self._order = lru_cache(maxsize=2)(self._new_order)

    def __len__(self) -> int:
        return len(self.images)

    def key(self) -> str:
        """Changes with the images and their captions, not with the folder they are in."""
        return key_of(self.clips)

    def clip(self, rng: SampleRng) -> CachedClip:
        """The image of a draw."""
        epoch, place = divmod(rng.number, len(self.clips))
        return self.clips[self._order(rng.seed, epoch)[place]]

    def sample(self, rng: SampleRng, captions: Callable[[Item], Sequence[str]] | None = None) -> Sample:
        """An image with noise, timestep and caption; `captions` are others than its own."""
        clip = self.clip(rng)
        view = int(self.config.flip and rng.uniform("mirror") < 0.5)
        said = captions(clip.item) if captions is not None else clip.item.captions
        return self.denoiser.sample(rng, clip.latents([view]), said)

    def captions(self) -> list[str]:
        """All captions of all images."""
        return [caption for image in self.images for caption in image.item.captions]

    def prompts(self) -> list[str]:
        """Captions of the first few images, each once: what sample sheets show if nothing is asked for."""
        return list(dict.fromkeys(image.item.captions[0] for image in self.images))[:MAX_SAMPLES]

    def size_notes(self) -> list[str]:
        """A sentence if some images are too small."""
        small = [image for image in self.images if image.enlarged]
        return [_small_sentence(small, len(self), self.config.side)] if small else []

    def caption_notes(self) -> list[str]:
        """A sentence if the captions say nothing that differs."""
        caption = same_captions(image.item for image in self.images)
        if caption is None or len(self) == 1:
            return []
        return [f"Note: all captions are {caption!r}; other words will not steer what is learnt."]

    def _new_order(self, seed: int, epoch: int) -> list[int]:
        count = len(self.clips)
        first = -epoch * count % self.batch
        return grouped(shuffled(seed, epoch, count).tolist(), self._buckets, self.batch, first)


def _sizes(config: ImageConfig, denoiser: Denoiser) -> list[Size]:
    halvings = len(denoiser.unet.config.block_out_channels) - 1
    step = fitting_step(config.side, denoiser.factor, halvings)
    if not step:
        raise TrainingError(
            f"resolution is {config.side}, but this base draws sizes in multiples of "
            f"{denoiser.factor} pixels: give such a one."
        )
    if not config.buckets:
        return [(config.side, config.side)]
    return bucket_sizes(config.side, step)


def _small_sentence(small: Sequence[ImageItem], count: int, resolution: int) -> str:
    tall, wide = min((image.size for image in small), key=lambda size: size[0] * size[1])
    return (
        f"Note: {len(small)} of {count} images are smaller than the resolution {resolution} (the smallest "
        f"{wide}x{tall}) and are enlarged, so the blur is learnt too: use larger ones, or --resolution "
        f"{min(tall, wide)}."
    )
