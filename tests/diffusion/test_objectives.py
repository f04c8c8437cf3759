"""Oracle: diffusers' DDPMScheduler computes the same noisy samples, velocities and schedules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from stillmotion.diffusion import objectives
from stillmotion.diffusion.schedule import ANIMATEDIFF, NoiseSchedule
from stillmotion.training.engine.lr_schedule import learning_rate

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_diffusers_computes_the_same(schedule, zero_snr):
    oracle = DDPMScheduler(
        beta_schedule=schedule, beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=zero_snr
    )
    alpha_bar = torch.from_numpy(NoiseSchedule.from_config(oracle.config).alphas_cumprod()).float()
    assert torch.allclose(alpha_bar, oracle.alphas_cumprod, atol=2e-5, rtol=2e-3)
    clean, noise, times = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0, 500, 999])
    here = oracle.alphas_cumprod[times].view(-1, 1, 1)
    assert torch.allclose(
        objectives.add_noise(clean, noise, here), oracle.add_noise(clean, noise, times), atol=1e-6
    )
    velocity = objectives.target(clean, noise, here, "v_prediction")
    assert torch.allclose(velocity, oracle.get_velocity(clean, noise, times), atol=1e-6)
    assert objectives.target(clean, noise, here, "epsilon") is noise


def test_noise_between_is_the_noise_that_was_added():
    alpha_bar = torch.tensor([0.9, 0.4, 0.0]).view(-1, 1)
    clean, noise = torch.randn(3, 5), torch.randn(3, 5)
    found = objectives.noise_from(objectives.add_noise(clean, noise, alpha_bar), clean, alpha_bar)
    assert torch.allclose(found, noise, atol=1e-5)


def test_zero_terminal_snr_ends_in_pure_noise():
    assert replace(ANIMATEDIFF, rescale_betas_zero_snr=True).alphas_cumprod()[-1] == 0
    assert ANIMATEDIFF.alphas_cumprod()[-1] > 1e-3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weight_is_its_definition_and_finite_at_the_ends(prediction_type):
    alpha_bar = torch.tensor([0.999, 0.9, 0.5, 0.1])
    snr = alpha_bar / (1 - alpha_bar)
    wanted = snr.clamp(max=5) / (snr if prediction_type == "epsilon" else snr + 1)
    assert torch.allclose(objectives.min_snr_weight(alpha_bar, 5.0, prediction_type), wanted, atol=1e-5)
    assert objectives.min_snr_weight(torch.tensor([0.0, 1.0]), 5.0, prediction_type).isfinite().all()


def test_learning_rate():
    def rate(step, schedule="cosine"):
        return learning_rate(step, 1e-4, schedule, 10, 110, 0.05)

    assert rate(0) == pytest.approx(1e-5) and rate(9) == pytest.approx(1e-4) == rate(10)
    assert rate(60) == pytest.approx(1e-4 * (0.05 + 0.95 * 0.5))
    assert rate(110) == rate(500) == pytest.approx(5e-6)
    assert rate(5000, "constant") == 1e-4
    assert all(math.isfinite(learning_rate(s, 1.0, "cosine", 5, 5, 0.0)) for s in range(8))
