"""What every denoising target shares: the base in its working precision, noise, text, the loss of one pass.

Notation of a batch: b samples of f images each (f = 1 for stills), latents (b, f, c, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from stillmotion.checkpoints.base_model import load_base
from stillmotion.diffusion import objectives
from stillmotion.diffusion.noise import progressive_noise
from stillmotion.diffusion.schedule import BETAS, NoiseSchedule
from stillmotion.diffusion.text import Conditioner
from stillmotion.diffusion.vae import pixels_per_latent
from stillmotion.runtime.precision import training_dtype
from stillmotion.training.config.shared import DenoiseConfig
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss

UNSAID = NoiseSchedule(prediction_type="epsilon", rescale_betas_zero_snr=False, clip_sample=False)


@dataclass(frozen=True)
class Sample:
    """One sample before noise: latents and noise (f, c, h, w) on the CPU, timestep, caption.

    The noise goes over `input_latents` where that is given: other latents than those the network should
    arrive at.
    """

    latents: Tensor
    noise: Tensor
    timestep: int
    caption: str
    input_latents: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """Output of the network for a batch and its target, both (b, f, c, h, w) fp32, with timesteps (b,)."""

    output: Tensor
    target: Tensor
    timesteps: Tensor


class Denoiser:
    """The frozen pipeline, the noise schedule that is trained on, and the text.

    Args:
        config: what it leaves open of the schedule is that of `schedule`, and else the base's.
        device: where the pipeline goes.
        schedule: of the motion in training.
        rounded: False leaves the UNet in fp32, for those who train its own weights.
        noise_alpha: of the clips (see diffusion.noise).
        pipeline: in place of the one that config.base names.
    """

    def __init__(
        self,
        config: DenoiseConfig,
        device: torch.device,
        schedule: NoiseSchedule | None = None,
        rounded: bool = True,
        noise_alpha: float = 0.0,
        pipeline: Any = None,
    ) -> None:
        self.config, self.device, self.noise_alpha = config, device, noise_alpha
        self.dtype = training_dtype(config.precision, device)
        given: Any = load_base(config.base, torch.float32) if pipeline is None else pipeline
        self.pipeline: Any = given.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for part in self.parts.values():
            part.requires_grad_(False).eval()
        self.unet = nn.Module.to(
            self.pipeline.unet, self.dtype if rounded else torch.float32
        )  # without a note
        self.text = Conditioner(self.pipeline, self.dtype)
        self.untrained_samples: dict[Any, list[np.ndarray]] = {}
        """What the base alone draws for sample sheets, kept by samples.py."""
        self.base_scheduler = self.pipeline.scheduler
        self.pipeline.scheduler = training_scheduler(self.base_scheduler.config, config, schedule)
        self.prediction_type = self.pipeline.scheduler.config.prediction_type
        self.alphas_cumprod = torch.from_numpy(self.schedule.alphas_cumprod()).float().to(device)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise that is trained on."""
        said = NoiseSchedule.from_config(self.pipeline.scheduler.config)
        return replace(said, noise_alpha=self.noise_alpha)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} on {self.device}, the base predicts {self.prediction_type}"

    def sample(self, rng: SampleRng, latents: Tensor, captions: Sequence[str]) -> Sample:
        """Noise, a timestep and one of the captions (or none: text_dropout) for latents (f, c, h, w)."""
        latents = latents.float()
        noise = rng.noise(*latents.shape)
        if self.config.noise_offset:
            noise += self.config.noise_offset * rng.noise(*latents.shape[:2], 1, 1, name="offset")
        noise = progressive_noise(noise, self.noise_alpha)
        unsaid = rng.uniform("text_dropout") < self.config.text_dropout
        caption = "" if unsaid else captions[rng.index("caption", len(captions))]
        first, end = self.config.min_timestep, self.config.max_timestep or len(self.alphas_cumprod)
        return Sample(latents, noise, first + rng.index("timestep", end - first), caption)

    def predict(self, samples: Sequence[Sample]) -> Prediction:
        """One pass of the UNet over samples of one shape."""
        latents, noise, input_latents = (
            torch.stack(parts).to(self.device)
            for parts in zip(*((s.latents, s.noise, _input_latents(s)) for s in samples), strict=True)
        )
        timesteps = torch.tensor([sample.timestep for sample in samples], device=self.device)
        frames, alpha_bar = latents.shape[1], self.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        noisy = objectives.add_noise(input_latents, noise, alpha_bar)
        output = self.unet(
            noisy.flatten(0, 1).to(self.dtype),
            timesteps.repeat_interleave(frames),
            **self.text.unet_arguments([s.caption for s in samples], frames, self.pixels(latents)),
        ).sample
        if any(sample.input_latents is not None for sample in samples):
            noise = objectives.noise_from(noisy, latents, alpha_bar)
        target = objectives.target(latents, noise, alpha_bar, self.prediction_type)
        return Prediction(output.float().view_as(target), target, timesteps)

    def losses(self, prediction: Prediction) -> Tensor:
        """(b,): L2 of each sample, min-SNR weighted if the config says so."""
        losses = F.mse_loss(prediction.output, prediction.target, reduction="none").flatten(1).mean(1)
        return losses * self.weights(prediction.timesteps)

    def weights(self, timesteps: Tensor) -> Tensor:
        """(b,): weight of each timestep in the loss; 1 without min-SNR."""
        if self.config.snr_gamma is None:
            return torch.ones(len(timesteps), device=self.device)
        return objectives.min_snr_weight(
            self.alphas_cumprod[timesteps], self.config.snr_gamma, self.prediction_type
        )

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks of the pipeline by name: unet, vae, text_encoder, for SDXL text_encoder_2."""
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}

    @property
    def factor(self) -> int:
        """Pixels per latent."""
        return pixels_per_latent(self.pipeline.vae)

    def pixels(self, latents: Tensor) -> tuple[int, int]:
        """Height and width in pixels of latents (..., h, w)."""
        return latents.shape[-2] * self.factor, latents.shape[-1] * self.factor


def _input_latents(sample: Sample) -> Tensor:
    return sample.latents if sample.input_latents is None else sample.input_latents


def loss_of(value: Tensor, prediction: Prediction) -> Loss:
    """A loss with the spread that the diagnostics need."""
    return Loss(value, prediction.output.detach().std() / prediction.target.std().clamp(min=1e-6))


def same_shapes(samples: Sequence[Sample]) -> list[list[int]]:
    """The places of samples of one shape together: one pass of the UNet each."""
    shapes: dict[torch.Size, list[int]] = {}
    for index, sample in enumerate(samples):
        shapes.setdefault(sample.latents.shape, []).append(index)
    return list(shapes.values())


def image_loss(denoiser: Denoiser, samples: Sequence[Sample], weights: Sequence[float] | None = None) -> Loss:
    """Weighted sum of the losses of samples of any sizes; default: their mean."""
    weights = weights or [1 / len(samples)] * len(samples)
    values, spreads = [], []
    for indices in same_shapes(samples):
        prediction = denoiser.predict([samples[index] for index in indices])
        losses = denoiser.losses(prediction)
        share = torch.tensor([weights[index] for index in indices], device=losses.device)
        part = loss_of((losses * share).sum(), prediction)
        values.append(part.value)
        spreads.append(part.spread * (len(indices) / len(samples)))
    return Loss(torch.stack(values).sum(), torch.stack(spreads).sum())


def training_scheduler(
    base: Mapping[str, Any], config: DenoiseConfig, schedule: NoiseSchedule | None = None
) -> DDIMScheduler:
    """DDIM with the noise of the config, else the betas of `schedule`; the rest is the base's."""
    said = config.schedule.merged_over(schedule or NoiseSchedule())
    kept = NoiseSchedule.from_config(base).only("prediction_type", "rescale_betas_zero_snr")
    settings = said.merged_over(kept).merged_over(UNSAID).to_config()
    if any(name in settings for name in BETAS):
        settings.setdefault("trained_betas", None)  # of the base, which a formula replaces
    return DDIMScheduler.from_config(base, **settings)
