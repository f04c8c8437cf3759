"""The mathematics of denoising training: noisy latents, targets, weights. Pure functions.

Notation of DDPM (Ho et al. 2020): abar_t is the product of (1 - beta) up to t, and
x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stillmotion.diffusion.schedule import PredictionType


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t; `alpha_bar` must broadcast with the latents."""
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def target(latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: PredictionType) -> Tensor:
    """What the network should say: the noise eps, or the velocity of Salimans & Ho 2022.

    v = sqrt(abar) eps - sqrt(1 - abar) x_0
    """
    if prediction_type == "epsilon":
        return noise
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def noise_from(add_noise: Tensor, latents: Tensor, alpha_bar: Tensor) -> Tensor:
    """eps with which x_t would have come from these latents: `add_noise` solved for the noise."""
    return (add_noise - alpha_bar.sqrt() * latents) / (1 - alpha_bar).sqrt()


def appearance_debiased(clips: Tensor, anchors: Sequence[int], beta: float = 1.0) -> Tensor:
    """Clips (b, f, ...) less what they share with one frame each, `anchors` (b): what is left is motion.

    sqrt(beta^2 + 1) x - beta x_anchor keeps the variance of independent frames (MotionDirector, eq. 5).
    """
    anchored = torch.stack([clip[anchor] for clip, anchor in zip(clips, anchors, strict=True)])
    return math.sqrt(beta**2 + 1) * clips - beta * anchored.unsqueeze(1)


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023); finite at both ends."""
    if prediction_type == "epsilon":
        return torch.where(
            alpha_bar > 0, torch.clamp(gamma * (1 - alpha_bar) / alpha_bar.clamp(min=1e-12), max=1.0), 1.0
        )
    return torch.minimum(alpha_bar, gamma * (1 - alpha_bar))
