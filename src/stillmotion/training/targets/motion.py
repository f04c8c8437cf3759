"""The motion target: temporal modules on a frozen text-to-image UNet, trained on clips with captions.

AnimateDiff's recipe (Guo et al. 2023): one timestep for all frames of a clip, L2 on what the base predicts, a
noise schedule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.attachments.lora import LoraAttachment
from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import find_items
from stillmotion.diffusion.schedule import ANIMATEDIFF, BETAS, NoiseSchedule
from stillmotion.errors import WrongKind
from stillmotion.motion.local_init import init_local_attention
from stillmotion.training.config import MotionTrainConfig
from stillmotion.training.data.videos import key_of, note_captions, prepare_clips, sample_fps, sample_frames
from stillmotion.training.denoiser import Denoiser, Sample, loss_of
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.initial_motion import (
    describe_origin,
    load_motion,
    resolve_noise_alpha,
    save_motion,
)

MAX_SAMPLES = 4
FINE = 1e-4
"""highest learning rate that is usual for going on from given weights"""


class MotionTarget:
    """Base frozen in the working precision, motion attached to it, latents of all clips on disk."""

    artifact = "motion"

    def __init__(
        self, config: MotionTrainConfig, accelerator: Accelerator, log: Callable[[str], None]
    ) -> None:
        self.config = config
        report = Report()
        # before models load, so that a wrong path is said at once
        items = find_items(config.videos, report, config.video_folder)
        given = load_motion(config.motion) if config.motion is not None else None
        family = None if given is None else given.family
        self.denoiser = Denoiser(
            config,
            accelerator.device,
            ANIMATEDIFF if family is None else family.schedule.only(*BETAS),
            noise_alpha=resolve_noise_alpha(config.noise_alpha, family),
        )
        self.pipeline = self.denoiser.pipeline
        self.adapter = self._adapter()
        self.clips = prepare_clips(config, items, report, self.pipeline.vae, accelerator, log)
        self.fps = sample_fps(self.clips, config)
        self.motion = self._settled(given or self._fresh()).to(accelerator.device)
        if config.gradient_checkpointing:
            self.motion.set_gradient_checkpointing(True)
            self.pipeline.unet.enable_gradient_checkpointing()
        self.attachment = attach_motion(self.pipeline.unet, self.motion, frames=config.frames)
        self._advise(log, given)

    def data_key(self) -> str:
        """Names clips and captions."""
        return key_of(self.clips)

    def parameters(self) -> Mapping[str, Parameter]:
        """All of the motion net."""
        return dict(self.motion.named_parameters())

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """L2 (optionally min-SNR weighted) on the noise or velocity of one clip per draw."""
        prediction = self.denoiser.predict([self.sample(rng) for rng in rngs])
        return loss_of(self.denoiser.losses(prediction).mean(), prediction)

    def sample(self, rng: SampleRng) -> Sample:
        """A stretch of one clip, with noise, one timestep and a caption."""
        return self.denoiser.sample(rng, *sample_frames(rng, self.clips, self.config))

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """`motion/`: a folder that MotionModel.load and diffusers' MotionAdapter.from_pretrained read."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        sampling = self.motion.family.sampling
        defaults = {name: getattr(sampling, name) for name in ("frames", "width", "height", "fps")}
        save_motion(output / self.artifact, self.motion, state, defaults, self._noise().said())

    def samples(self, folder: Path, step: int) -> Path | None:
        """One clip per validation prompt, always from the same noise, in one sheet."""
        prompts = self.config.validation_prompts or [
            clip.item.captions[0] for clip in self.clips[:MAX_SAMPLES]
        ]
        return sample_sheet(self.denoiser, prompts, folder, step, self.config.frames, self.fps)

    def _fresh(self) -> MotionModel:
        config = self.config
        overrides: dict[str, Any] = {"positions": config.positions, "motion_norm": config.motion_norm}
        if config.mid_block is not None:
            overrides["mid"] = config.mid_block
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return MotionModel.for_unet(self.pipeline.unet, **overrides)

    def _settled(self, net: MotionModel) -> MotionModel:
        """Its spec says what it is trained for from here on; family, norms and positions stay."""
        if self.config.local_init:
            init_local_attention(net)
        size = self.config.side
        net.family = net.family.updated(
            **self._noise().said(), frames=self.config.frames, width=size, height=size, fps=self.fps
        )
        return net

    def _adapter(self) -> LoraAttachment | None:
        """The frozen domain adapter, on the UNet for the whole run."""
        file, scale = self.config.domain_adapter, self.config.domain_adapter_scale
        if file is None:
            return None
        lora = Lora.load(file)
        if lora.moves:
            raise WrongKind(
                f"{lora.name} is {lora.kind.title}; domain_adapter takes a LoRA of the image model, such as "
                "`stillmotion train domain-adapter` makes."
            )
        return lora.attach(self.pipeline, weight=scale)

    def _noise(self) -> NoiseSchedule:
        """What the motion learns to take away."""
        return self.denoiser.schedule.only(*BETAS, "noise_alpha")

    def _advise(self, log: Callable[[str], None], given: MotionModel | None) -> None:
        config = self.config
        count = sum(parameter.numel() for parameter in self.motion.parameters())
        log(f"{len(self.clips)} clips, {count / 1e6:.1f} M motion parameters, {self.denoiser}.")
        if given is not None:
            log(f"Starting from {describe_origin(given)}.")
            if config.learning_rate > FINE:
                log(
                    f"Note: learning_rate {config.learning_rate:g} is high for weights that are good: "
                    f"1e-05 to {FINE:g} is usual, so that they learn your videos and forget little."
                )
        if self.adapter is not None:
            log(f"With {config.domain_adapter} at {config.domain_adapter_scale:g}, which stays as it is.")
        note_captions(self.clips, self.denoiser.pipeline, log)
