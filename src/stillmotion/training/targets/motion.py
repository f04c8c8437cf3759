"""The motion target: temporal modules on a frozen text-to-image UNet, trained on clips with captions.

AnimateDiff's recipe (Guo et al. 2023): one timestep for all frames of a clip, L2 on what the base predicts, a
noise schedule of its own. Knows nothing of optimizers and checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.atomic import write_text
from stillmotion.data.latents import CachedClip
from stillmotion.data.report import Report
from stillmotion.data.sampling import frame_indices
from stillmotion.data.sources import find_items, same_captions
from stillmotion.motion.attach import attach
from stillmotion.motion_model import MotionModel
from stillmotion.training.clips import prepare_clips
from stillmotion.training.config import MotionTrainConfig
from stillmotion.training.denoise import BETAS, Denoiser, Sample, loss_of
from stillmotion.training.draws import Draw
from stillmotion.training.targets import Loss
from stillmotion.training.validation import sample_sheet

SHOWN = 4


class MotionTarget:
    """Base frozen in the working precision, motion attached to it, latents of all clips on disk."""

    product = "motion"

    def __init__(
        self, config: MotionTrainConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.config = config
        report = Report()
        # before models load, so that a wrong path is said at once
        items = find_items(config.videos, report, config.video_folder)
        self.denoiser = Denoiser(config, accelerator.device)
        self.pipeline = self.denoiser.pipeline
        self.clips = prepare_clips(config, items, report, self.pipeline.vae, accelerator, say)
        self.motion = self._motion(self.pipeline.unet).to(accelerator.device)
        if config.gradient_checkpointing:
            self.motion.set_gradient_checkpointing(True)
            self.pipeline.unet.enable_gradient_checkpointing()
        self.attachment = attach(self.pipeline.unet, self.motion, frames=config.frames)
        self._advise(say)

    def data_key(self) -> str:
        """Changes with the clips and their captions, not with the folder they are in."""
        facts = [(clip.file.name, clip.item.captions) for clip in self.clips]
        return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()

    def parameters(self) -> Mapping[str, Parameter]:
        """All of the motion net."""
        return dict(self.motion.named_parameters())

    def loss(self, draws: Sequence[Draw]) -> Loss:
        """L2 (optionally min-SNR weighted) on the noise or velocity of one clip per draw."""
        guess = self.denoiser.guess([self.sample(draw) for draw in draws])
        return loss_of(self.denoiser.losses(guess).mean(), guess)

    def sample(self, draw: Draw) -> Sample:
        """A stretch of one clip, with noise, one timestep and a caption."""
        config, clip = self.config, self.clips[draw.item(len(self.clips))]
        start, *others = draw.choices(4)
        indices = frame_indices(clip.length, config.frames, config.stride, start, config.loop, config.span)
        return self.denoiser.sample(draw, clip.latents(indices), clip.item.captions, *others)

    def save(self, output: Path, weights: Mapping[str, Tensor]) -> None:
        """`motion/`: a folder that MotionModel.load and diffusers' MotionAdapter.from_pretrained read."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        state |= {
            name: buffer.cpu() for name, buffer in self.motion.state_dict().items() if name not in state
        }
        net = MotionModel.from_state(self.motion.spec, state)
        net.extra = self.motion.extra
        net.save(output / self.product)
        write_text(output / self.product / "stillmotion.json", json.dumps(self._facts(), indent=1) + "\n")

    def samples(self, folder: Path, step: int) -> Path | None:
        """One clip per validation prompt, always from the same noise, in one sheet."""
        prompts = self.config.validation_prompts or [clip.item.captions[0] for clip in self.clips[:SHOWN]]
        return sample_sheet(self.denoiser, prompts, folder, step, self.config.frames, self._fps())

    def _motion(self, unet: torch.nn.Module) -> MotionModel:
        config = self.config
        if config.motion is not None:
            net = MotionModel.load(config.motion, dtype=torch.float32)
        else:
            overrides: dict[str, Any] = {"positions": config.positions, "motion_norm": config.motion_norm}
            if config.mid_block is not None:
                overrides["mid"] = config.mid_block
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                net = MotionModel.for_unet(unet, **overrides)
        betas = {name: getattr(config, name) for name in BETAS}
        size, fps = config.resolution, self._fps()
        net.spec = replace(net.spec, **betas, frames=config.frames, width=size, height=size, fps=fps)
        return net

    def _fps(self) -> float:
        """Pace of the training clips: the videos' own, divided by the step between frames."""
        rates = sorted(clip.fps / self._step(clip) for clip in self.clips)
        return round(rates[len(rates) // 2], 3)

    def _step(self, clip: CachedClip) -> float:
        return clip.length / self.config.frames if self.config.span == "whole" else self.config.stride

    def _facts(self) -> dict[str, Any]:
        """The model card of the motion: what its clips are like, and the noise it knows."""
        spec = self.motion.spec
        return {
            "name": self.config.output.name,
            "defaults": {name: getattr(spec, name) for name in ("frames", "width", "height", "fps")},
            "schedule": {name: self.pipeline.scheduler.config[name] for name in BETAS},
        }

    def _advise(self, say: Callable[[str], None]) -> None:
        count = sum(parameter.numel() for parameter in self.motion.parameters())
        say(f"{len(self.clips)} clips, {count / 1e6:.1f} M motion weights, {self.denoiser}.")
        caption = same_captions(clip.item for clip in self.clips)
        if caption is not None and len(self.clips) > 1:
            say(f"Note: all captions are {caption!r}; the text will not steer what is learnt.")
