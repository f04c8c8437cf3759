"""The motion LoRA target: low-rank changes of a frozen motion module, on a frozen text-to-image UNet.

From a folder of videos, from clips made by a camera move, or from one reference video. For one video the two
paths of MotionDirector (Zhao et al. 2023) keep its motion apart from its looks: a LoRA on the UNet learns
single frames without motion and so takes in the appearance; it is on, but gets no gradient, while the LoRA on
the motion learns the clip. Knows nothing of optimizers and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.data.filming import filmed, read_filmed
from stillmotion.data.report import Report
from stillmotion.data.sources import CLIP_SUFFIXES, STILL_SUFFIXES, Item, find_items
from stillmotion.errors import DataError
from stillmotion.lora_model import Lora
from stillmotion.motion.attach import attach
from stillmotion.training.clips import key_of, pace, prepare_clips, stretch
from stillmotion.training.config import MotionLoraConfig
from stillmotion.training.denoise import Denoiser, Guess, Sample, loss_of
from stillmotion.training.draws import Draw
from stillmotion.training.given import betas, carried, motion_of, origin
from stillmotion.training.low_rank import LowRanks, attention_layers
from stillmotion.training.metadata import lora_metadata
from stillmotion.training.objectives import debiased
from stillmotion.training.passes import frozen, settled
from stillmotion.training.targets import Loss
from stillmotion.training.text import note_cut_captions
from stillmotion.training.validation import sample_sheet

SHOWN = 4
SHOTS = "shots"
"""series of draws from which camera moves get their variations"""


def temporal_layers(path: str, layer: nn.Module) -> bool:
    """All that MotionDirector changes: attention and feed-forward of the blocks, not what is around them."""
    return attention_layers(path, layer) or path.endswith(("ff.net.0.proj", "ff.net.2"))


def held(clip: Tensor) -> Tensor:
    """The frame (f, ...) in the middle, all the time."""
    return clip[len(clip) // 2].expand_as(clip)


class MotionLoraTarget:
    """Base and motion frozen in the working precision, LoRAs on them, latents of all clips on disk."""

    product = "motion-lora.safetensors"

    def __init__(
        self, config: MotionLoraConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.config = config
        report = Report()
        items = self._items(report)
        given = motion_of(config.motion, config.base)
        alpha = carried(config.noise_alpha, given.spec)
        self.denoiser = Denoiser(config, accelerator.device, betas(given.spec), noise_alpha=alpha)
        unet = self.denoiser.unet
        self.motion = given.requires_grad_(False).eval().to(accelerator.device, self.denoiser.dtype)
        self.attachment = attach(unet, self.motion, frames=config.frames)
        read = read_filmed if config.camera else None
        self.clips = prepare_clips(config, items, report, self.denoiser.pipeline.vae, accelerator, say, read)
        note_cut_captions(self.denoiser.pipeline, (c for clip in self.clips for c in clip.item.captions), say)
        self.fps = pace(self.clips, config)
        if config.gradient_checkpointing:
            self.motion.set_gradient_checkpointing(True)
            unet.enable_gradient_checkpointing()
        networks = {"motion": self.motion, **({"unet": unet} if config.reference else {})}
        wanted = temporal_layers if config.feed_forward else attention_layers
        self.ranks = LowRanks(networks, wanted, config)
        say(f"{len(self.clips)} clips, {self.ranks.size / 1e6:.1f} M LoRA weights, {self.denoiser}.")
        say(f"The LoRA is for {origin(given)}.")

    def data_key(self) -> str:
        """Names clips and captions; with a camera also the moves."""
        return key_of(self.clips)

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA of the motion, and with a reference that of the UNet."""
        return self.ranks.parameters()

    def loss(self, draws: Sequence[Draw]) -> Loss:
        """L2 and appearance-debiased L2 on one clip per draw; with a reference also L2 on single frames."""
        if self.config.camera:
            return self.dialled(draws)
        samples = [self.sample(draw) for draw in draws]
        if not self.config.reference:
            guess = self.denoiser.guess(samples)
            return loss_of(self.moving(guess, draws), guess)
        looks = self.still(samples, draws)
        with frozen(self._spatial()):
            guess = self.denoiser.guess(samples)
            value = settled(self.moving(guess, draws), self.parameters().values())
        return loss_of(looks + value, guess)

    def dialled(self, draws: Sequence[Draw]) -> Loss:
        """Shots of a camera, each with the LoRA at the part of the move that it shows.

        Half of a move is a quarter in squares: each part counts as if it were the whole.
        """

        def part_of(draw: Draw) -> float:
            return self.clips[draw.item(len(self.clips))].item.part  # type: ignore[attr-defined]

        value, guesses = torch.zeros((), device=self.denoiser.device), []
        for part, group in groupby(sorted(draws, key=part_of), part_of):
            alike = list(group)
            with self.ranks.at(part):
                guess = self.denoiser.guess([self.sample(draw) for draw in alike])
                share = self.moving(guess, alike) / part**2 * len(alike) / len(draws)
                value = value + settled(share, self.parameters().values())
            guesses.append((guess.said, guess.wanted, guess.times))
        return loss_of(value, Guess(*map(torch.cat, zip(*guesses, strict=True))))

    def sample(self, draw: Draw) -> Sample:
        """A stretch of one clip, with noise, one timestep and a caption."""
        start, *others = draw.choices(4)
        sample = self.denoiser.sample(draw, *stretch(draw, self.clips, self.config, start), *others)
        if not self.config.camera_unseen:
            return sample
        if draw.choices(7)[6] < self.config.camera_unseen:
            return replace(sample, shown=held(sample.latents))
        return replace(sample, time=int(others[-1] * len(self.denoiser.abar)))

    def moving(self, guess: Guess, draws: Sequence[Draw]) -> Tensor:
        """Loss of whole clips: L2, and L2 of what is left when a random frame of the clip is taken away."""
        anchors = [int(draw.choices(5)[4] * self.config.frames) for draw in draws]
        apart = debiased(guess.said, anchors) - debiased(guess.wanted, anchors)
        biased = apart.square().flatten(1).mean(1) * self.denoiser.weights(guess.times)
        return (self.denoiser.losses(guess) + self.config.debias_weight * biased).mean()

    def still(self, samples: Sequence[Sample], draws: Sequence[Draw]) -> Tensor:
        """Loss of one random frame of each clip, without motion: the appearance."""
        taken = [int(draw.choices(6)[5] * self.config.frames) for draw in draws]
        frames = [
            replace(sample, latents=sample.latents[k : k + 1], noise=sample.noise[k : k + 1])
            for sample, k in zip(samples, taken, strict=True)
        ]
        with self._one_frame():
            return settled(self.denoiser.losses(self.denoiser.guess(frames)).mean(), self._spatial())

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """The motion LoRA in the original and in diffusers' layout; of a reference its looks too."""
        parts = self.ranks.lora(weights).parts
        motion = Lora({"motion": parts["motion"]})
        captions = (caption for clip in self.clips for caption in clip.item.captions)
        facts = lora_metadata(self.config, self.denoiser, captions, step)
        motion.save(output / self.product, "original", metadata=facts)
        motion.save(output / "motion-lora-peft.safetensors", "peft", metadata=facts)
        if "unet" in parts:
            Lora({"unet": parts["unet"]}).save(output / "spatial-lora.safetensors", "kohya", metadata=facts)

    def samples(self, folder: Path, step: int) -> Path | None:
        """One clip per validation prompt with the motion LoRA on, without the looks of a reference."""
        captions = dict.fromkeys(clip.item.captions[0] for clip in self.clips)
        prompts = self.config.validation_prompts or list(captions)[:SHOWN]
        plain = self.ranks.at(0.0, "unet") if self.config.reference else nullcontext()
        with self.ranks.resting(), plain:
            return sample_sheet(self.denoiser, prompts, folder, step, self.config.frames, self.fps)

    def _items(self, report: Report) -> Sequence[Item]:
        """What latents are made of; DataError at once for a path that is wrong."""
        config = self.config
        if config.reference is not None:
            if not config.reference.exists():
                raise DataError(f"{config.reference} does not exist: give a video as reference.")
            return [Item(config.reference, (str(config.prompt),))]
        if config.camera is None:
            return find_items(config.videos, report, config.video_folder)
        items = find_items(config.videos, report, config.video_folder, CLIP_SUFFIXES | STILL_SUFFIXES)
        return filmed(
            items,
            config.camera,
            config.amount,
            config.frames,
            config.camera_variants,
            lambda number: Draw(config.seed, number).other(SHOTS).choices(2),
        )

    def _spatial(self) -> list[Parameter]:
        return [p for name, p in self.parameters().items() if name.startswith("unet/")]

    @contextmanager
    def _one_frame(self) -> Iterator[None]:
        """The batch is single pictures: motion rests."""
        self.attachment.frames = 1
        try:
            yield
        finally:
            self.attachment.frames = self.config.frames
