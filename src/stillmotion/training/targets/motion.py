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
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import Parameter

from stillmotion.atomic import write_text
from stillmotion.data.latents import CachedClip
from stillmotion.data.report import Report
from stillmotion.data.sampling import frame_indices
from stillmotion.data.sources import find_items, same_captions
from stillmotion.fast.precision import training_dtype
from stillmotion.motion.attach import attach
from stillmotion.motion_model import MotionModel
from stillmotion.training import objectives
from stillmotion.training.clips import prepare_clips
from stillmotion.training.config import MotionTrainConfig
from stillmotion.training.draws import OFFSET, Draw
from stillmotion.training.targets import Loss
from stillmotion.training.text import Conditioner
from stillmotion.training.validation import sample_clip, save_sheet
from stillmotion.weights.base import load_base

SHOWN = 4
BETAS = ("beta_schedule", "beta_start", "beta_end")


class MotionTarget:
    """Base frozen in the working precision, motion attached to it, latents of all clips on disk."""

    product = "motion"

    def __init__(
        self, config: MotionTrainConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.config, self.device = config, accelerator.device
        self.dtype = training_dtype(config.precision, accelerator.device)
        report = Report()
        # before models load, so that a wrong path is said at once
        items = find_items(config.videos, report, config.video_folder)
        self.pipeline = load_base(config.base, torch.float32).to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        unet = self.pipeline.unet.requires_grad_(False).eval().to(self.dtype)
        self.clips = prepare_clips(config, items, report, self.pipeline.vae, accelerator, say)
        self.text = Conditioner(self.pipeline, config.resolution, self.dtype)
        self.pipeline.scheduler = motion_scheduler(self.pipeline.scheduler.config, config)
        settings = self.pipeline.scheduler.config
        self.prediction = settings.prediction_type
        self.abar = objectives.alphas_cumprod(
            settings.beta_schedule,
            settings.beta_start,
            settings.beta_end,
            settings.num_train_timesteps,
            settings.rescale_betas_zero_snr,
        ).to(self.device)
        self.motion = self._motion(unet).to(self.device)
        if config.gradient_checkpointing:
            self.motion.set_gradient_checkpointing(True)
            unet.enable_gradient_checkpointing()
        self.attachment = attach(unet, self.motion, frames=config.frames)
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
        frames, (latents, noise, times, captions) = self.config.frames, self._batch(draws)
        abar = self.abar[times].view(-1, 1, 1, 1, 1)
        sample = objectives.noisy(latents, noise, abar)  # b f c h w
        wanted = objectives.target(latents, noise, abar, self.prediction)
        said = self.pipeline.unet(
            sample.flatten(0, 1).to(self.dtype),
            times.repeat_interleave(frames),
            **self.text.unet_arguments(captions, frames),
        ).sample.float()
        losses = F.mse_loss(said.view_as(wanted), wanted, reduction="none").flatten(1).mean(1)
        if self.config.snr_gamma is not None:
            losses = losses * objectives.min_snr_weight(
                self.abar[times], self.config.snr_gamma, self.prediction
            )
        return Loss(losses.mean(), said.detach().std() / wanted.std().clamp(min=1e-6))

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
        size, config = self.config.resolution, self.config
        options: dict[str, Any] = {
            "width": size,
            "height": size,
            "guidance_scale": config.validation_guidance,
            "num_inference_steps": config.validation_inference_steps,
        }
        clips = [
            sample_clip(self.pipeline, self.text, prompt, config.frames, config.seed + number, **options)
            for number, prompt in enumerate(prompts)
        ]
        path = folder / f"step-{step:08d}.png"
        save_sheet(clips, path, self._fps())
        return path

    def _batch(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Latents and noise (b, f, c, h, w), timesteps (b,), captions."""
        rows = [self._sample(draw) for draw in draws]
        latents, noise, times, captions = zip(*rows, strict=True)
        stacked = torch.stack(latents).to(self.device), torch.stack(noise).to(self.device)
        return *stacked, torch.tensor(times, device=self.device), list(captions)

    def _sample(self, draw: Draw) -> tuple[Tensor, Tensor, int, str]:
        config, clip = self.config, self.clips[draw.item(len(self.clips))]
        start, which, dropped, time = draw.choices(4)
        indices = frame_indices(clip.length, config.frames, config.stride, start, config.loop, config.span)
        latents = clip.latents(indices).float()
        noise = draw.noise(*latents.shape)
        if config.noise_offset:
            noise += config.noise_offset * draw.noise(*latents.shape[:2], 1, 1, purpose=OFFSET)
        captions = clip.item.captions
        caption = "" if dropped < config.text_dropout else captions[int(which * len(captions))]
        return latents, noise, int(time * len(self.abar)), caption

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
        dtype = str(self.dtype).removeprefix("torch.")
        say(
            f"{len(self.clips)} clips, {count / 1e6:.1f} M motion weights, {dtype} on {self.device}, "
            f"the base predicts {self.prediction}."
        )
        caption = same_captions(clip.item for clip in self.clips)
        if caption is not None and len(self.clips) > 1:
            say(f"Note: all captions are {caption!r}; the text will not steer what is learnt.")


def motion_scheduler(base: Mapping[str, Any], config: MotionTrainConfig) -> DDIMScheduler:
    """DDIM with the betas of the motion training; prediction type and terminal SNR stay the base's."""
    zero_snr = config.zero_terminal_snr
    prediction = config.prediction_type or base.get("prediction_type", "epsilon")
    settings = {
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "trained_betas": None,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": base.get("rescale_betas_zero_snr", False) if zero_snr is None else zero_snr,
        "clip_sample": False,
    }
    return DDIMScheduler.from_config(base, **settings)
