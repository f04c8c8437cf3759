"""The motion LoRA target: low-rank changes of a frozen motion module, on a frozen text-to-image UNet.

From a folder of videos, from clips made by a camera move, or from one reference video. For one video the two
paths of MotionDirector (Zhao et al. 2023) keep its motion apart from its looks: a LoRA on the UNet learns
single frames without motion and so takes in the appearance; it is on, but gets no gradient, while the LoRA on
the motion learns the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.datasets.camera_clips import camera_clips, read_camera_clip
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import CLIP_SUFFIXES, STILL_SUFFIXES, Item, find_items
from stillmotion.diffusion.objectives import appearance_debiased
from stillmotion.diffusion.schedule import BETAS
from stillmotion.diffusion.text import note_cut_captions
from stillmotion.errors import DataError
from stillmotion.training.config import MotionLoraConfig
from stillmotion.training.data.videos import key_of, prepare_clips, sample_fps, sample_frames
from stillmotion.training.denoiser import Denoiser, Prediction, Sample, loss_of
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.engine.two_pass import backward_now, frozen
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.initial_motion import (
    describe_origin,
    motion_for,
    resolve_noise_alpha,
)
from stillmotion.training.targets.lora_metadata import lora_metadata
from stillmotion.training.targets.lora_params import LoraParameters, attention_layers

MAX_SAMPLES = 4


def temporal_layers(path: str, layer: nn.Module) -> bool:
    """All that MotionDirector changes: attention and feed-forward of the blocks, not what is around them."""
    return attention_layers(path, layer) or path.endswith(("ff.net.0.proj", "ff.net.2"))


def repeat_frame(clip: Tensor) -> Tensor:
    """The frame (f, ...) in the middle, all the time."""
    return clip[len(clip) // 2].expand_as(clip)


class MotionLoraTarget:
    """Base and motion frozen in the working precision, LoRAs on them, latents of all clips on disk."""

    artifact = "motion-lora.safetensors"

    def __init__(
        self, config: MotionLoraConfig, accelerator: Accelerator, log: Callable[[str], None]
    ) -> None:
        self.config = config
        report = Report()
        items = self._items(report)
        given = motion_for(config.motion, config.base)
        alpha = resolve_noise_alpha(config.noise_alpha, given.family)
        self.denoiser = Denoiser(
            config, accelerator.device, given.family.schedule.only(*BETAS), noise_alpha=alpha
        )
        unet = self.denoiser.unet
        self.motion = given.requires_grad_(False).eval().to(accelerator.device, self.denoiser.dtype)
        self.attachment = attach_motion(unet, self.motion, frames=config.frames)
        read: Any = read_camera_clip if config.camera else None  # of items that are all CameraClips
        self.clips = prepare_clips(config, items, report, self.denoiser.pipeline.vae, accelerator, log, read)
        note_cut_captions(self.denoiser.pipeline, (c for clip in self.clips for c in clip.item.captions), log)
        self.fps = sample_fps(self.clips, config)
        if config.gradient_checkpointing:
            self.motion.set_gradient_checkpointing(True)
            unet.enable_gradient_checkpointing()
        networks = {"motion": self.motion, **({"unet": unet} if config.reference else {})}
        wanted = temporal_layers if config.feed_forward else attention_layers
        self.lora_params = LoraParameters(networks, wanted, config)
        log(f"{len(self.clips)} clips, {self.lora_params.size / 1e6:.1f} M LoRA parameters, {self.denoiser}.")
        log(f"The LoRA is for {describe_origin(given)}.")

    def data_key(self) -> str:
        """Names clips and captions; with a camera also the moves."""
        return key_of(self.clips)

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA of the motion, and with a reference that of the UNet."""
        return self.lora_params.parameters()

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """L2 and appearance-debiased L2 on one clip per draw; with a reference also L2 on single frames."""
        if self.config.camera:
            return self.scaled_move_loss(rngs)
        samples = [self.sample(rng) for rng in rngs]
        if not self.config.reference:
            prediction = self.denoiser.predict(samples)
            return loss_of(self.motion_loss(prediction, rngs), prediction)
        looks = self.appearance_loss(samples, rngs)
        with frozen(self._spatial()):
            prediction = self.denoiser.predict(samples)
            value = backward_now(self.motion_loss(prediction, rngs), self.parameters().values())
        return loss_of(looks + value, prediction)

    def scaled_move_loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """Shots of a camera, each with the LoRA at the part of the move that it shows.

        Half of a move is a quarter in squares: each part counts as if it were the whole.
        """

        def part_of(rng: SampleRng) -> float:
            return self.clips[rng.item(len(self.clips))].item.part  # type: ignore[attr-defined]

        value, predictions = torch.zeros((), device=self.denoiser.device), []
        for part, group in groupby(sorted(rngs, key=part_of), part_of):
            alike = list(group)
            with self.lora_params.scaled(part):
                prediction = self.denoiser.predict([self.sample(rng) for rng in alike])
                share = self.motion_loss(prediction, alike) / part**2 * len(alike) / len(rngs)
                value = value + backward_now(share, self.parameters().values())
            predictions.append((prediction.output, prediction.target, prediction.timesteps))
        return loss_of(value, Prediction(*map(torch.cat, zip(*predictions, strict=True))))

    def sample(self, rng: SampleRng) -> Sample:
        """A stretch of one clip, with noise, one timestep and a caption."""
        sample = self.denoiser.sample(rng, *sample_frames(rng, self.clips, self.config))
        if not self.config.static_input_fraction:
            return sample
        if rng.uniform("static_input") < self.config.static_input_fraction:
            return replace(sample, input_latents=repeat_frame(sample.latents))
        return replace(sample, timestep=rng.index("timestep", len(self.denoiser.alphas_cumprod)))

    def motion_loss(self, prediction: Prediction, rngs: Sequence[SampleRng]) -> Tensor:
        """Loss of whole clips: L2, and L2 of what is left when a random frame of the clip is taken away."""
        anchors = [rng.index("debias_anchor", self.config.frames) for rng in rngs]
        apart = appearance_debiased(prediction.output, anchors) - appearance_debiased(
            prediction.target, anchors
        )
        biased = apart.square().flatten(1).mean(1) * self.denoiser.weights(prediction.timesteps)
        return (self.denoiser.losses(prediction) + self.config.debias_weight * biased).mean()

    def appearance_loss(self, samples: Sequence[Sample], rngs: Sequence[SampleRng]) -> Tensor:
        """Loss of one random frame of each clip, without motion: the appearance."""
        taken = [rng.index("appearance_frame", self.config.frames) for rng in rngs]
        frames = [
            replace(sample, latents=sample.latents[k : k + 1], noise=sample.noise[k : k + 1])
            for sample, k in zip(samples, taken, strict=True)
        ]
        with self._one_frame():
            return backward_now(self.denoiser.losses(self.denoiser.predict(frames)).mean(), self._spatial())

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """The motion LoRA in AnimateDiff's and in diffusers' layout; of a reference its looks too."""
        parts = self.lora_params.lora(weights).parts
        motion = Lora({"motion": parts["motion"]})
        captions = (caption for clip in self.clips for caption in clip.item.captions)
        facts = lora_metadata(self.config, self.denoiser, captions, step)
        motion.save(output / self.artifact, "animatediff", metadata=facts)
        motion.save(output / "motion-lora-peft.safetensors", "peft", metadata=facts)
        if "unet" in parts:
            Lora({"unet": parts["unet"]}).save(output / "spatial-lora.safetensors", "kohya", metadata=facts)

    def samples(self, folder: Path, step: int) -> Path | None:
        """One clip per prompt, with the motion LoRA and without, never with the looks of a reference."""
        captions = dict.fromkeys(clip.item.captions[0] for clip in self.clips)
        prompts = self.config.validation_prompts or list(captions)[:MAX_SAMPLES]
        plain = self.lora_params.scaled(0.0, "unet") if self.config.reference else nullcontext()
        with self.lora_params.eval_mode(), plain:
            frames, off = self.config.frames, self.lora_params.off
            return sample_sheet(self.denoiser, prompts, folder, step, frames, self.fps, without=off)

    def _items(self, report: Report) -> Sequence[Item]:
        """What latents are made of; DataError at once for a path that is wrong."""
        config = self.config
        if config.reference is not None:
            if not config.reference.exists():
                raise DataError(f"{config.reference} does not exist: give a video as reference.")
            return [Item(config.reference, (str(config.prompt),))]
        if config.camera is None:
            return find_items(config.source, report, config.video_folder)
        items = find_items(config.source, report, config.video_folder, CLIP_SUFFIXES | STILL_SUFFIXES)
        return camera_clips(
            items,
            config.camera,
            config.amount,
            config.frames,
            config.camera_variants,
            lambda number, name: SampleRng(config.seed, number).uniform(name),
        )

    def _spatial(self) -> list[Parameter]:
        return [p for name, p in self.parameters().items() if name.startswith("unet/")]

    @contextmanager
    def _one_frame(self) -> Iterator[None]:
        """The batch is single images: motion rests."""
        self.attachment.frames = 1
        try:
            yield
        finally:
            self.attachment.frames = self.config.frames
