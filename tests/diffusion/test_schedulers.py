"""Every sampler against an ideal denoiser: a right schedule ends at the only image it knows."""

from __future__ import annotations

import re
from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.diffusion.schedulers import ROWS, check_steps, make_scheduler, zero_terminal_snr_betas
from stillmotion.errors import RequestError
from stillmotion.motion.families import FAMILIES, LIGHTNING, SDXL, V3
from stillmotion.request.request import SCHEDULERS

SD15 = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
ZERO_SNR = SD15 | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "leading",
}


def scheduler_for(name: str, config: dict, spec=None):
    """The sampler for a base with this config, with motion of this family attached or without."""
    base = NoiseSchedule.from_config(config)
    return make_scheduler(name, base if spec is None else spec.schedule.over_base(base))


def test_request_offers_exactly_what_can_be_made() -> None:
    assert set(SCHEDULERS) == set(ROWS)


def reference_alpha_bar(config: dict, spec) -> torch.Tensor:
    """alpha_bar (1000,) from the formulas, in float64, independent of any scheduler."""
    start, end = (
        (spec.schedule.beta_start, spec.schedule.beta_end)
        if spec
        else (config["beta_start"], config["beta_end"])
    )
    schedule = spec.schedule.beta_schedule if spec else config["beta_schedule"]
    power = 2 if schedule == "scaled_linear" else 1
    betas = torch.linspace(start ** (1 / power), end ** (1 / power), 1000, dtype=torch.float64) ** power
    if config.get("rescale_betas_zero_snr"):
        betas = rescale_zero_terminal_snr(betas)
    return torch.cumprod(1 - betas, 0)


def sample(scheduler, alpha_bar: torch.Tensor, image: torch.Tensor, steps: int) -> torch.Tensor:
    """Sampling with a model that always knows the noise between x_t and `image`."""
    generator = torch.Generator().manual_seed(3)
    scheduler.set_timesteps(steps)
    x = torch.randn(image.shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t).double()
        low = alpha_bar[int(np.floor(float(t)))]
        high = alpha_bar[min(int(np.floor(float(t))) + 1, 999)]
        a = low + (high - low) * (float(t) % 1)
        epsilon = (seen - a.sqrt() * image) / (1 - a).sqrt()
        if scheduler.config.prediction_type == "v_prediction":
            epsilon = a.sqrt() * epsilon - (1 - a).sqrt() * image
        extra = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        x = scheduler.step(epsilon.float(), t, x.float(), **extra).prev_sample
    return x


@pytest.mark.parametrize("spec", [None, V3, SDXL, LIGHTNING], ids=lambda spec: spec.name if spec else "base")
@pytest.mark.parametrize("config", [SD15, ZERO_SNR], ids=["sd15", "zero-snr"])
@pytest.mark.parametrize("name", sorted(ROWS))
def test_an_ideal_denoiser_leads_to_its_image(name, config, spec) -> None:
    scheduler = scheduler_for(name, config, spec)
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    found = sample(scheduler, reference_alpha_bar(config, spec), image, 20)
    assert torch.isfinite(found).all()
    assert (found - image).std() < 0.06


@pytest.mark.parametrize("name", sorted(ROWS))
def test_motion_brings_its_betas_and_the_base_its_prediction(name) -> None:
    alone, moving = (
        scheduler_for(name, SD15 | {"prediction_type": "v_prediction"}, spec) for spec in (None, V3)
    )
    assert alone.config.beta_schedule == "scaled_linear"
    assert moving.config.beta_schedule == "linear"
    assert moving.config.prediction_type == alone.config.prediction_type == "v_prediction"
    assert not moving.config.get("clip_sample", False)
    assert moving.config.get("steps_offset", 1) == 1


def test_a_wrong_beta_schedule_would_be_noticed() -> None:
    """The complaint "grey clips", as a number: linear betas differ from the base's where it matters."""
    linear = scheduler_for("ddim", SD15, V3).alphas_cumprod
    scaled = scheduler_for("ddim", SD15, None).alphas_cumprod
    assert torch.allclose(linear, reference_alpha_bar(SD15, V3).float(), atol=1e-6)
    assert (linear - scaled).abs().max() > 0.05


def test_v3_ddim_is_configured_as_animatediff_does() -> None:
    ours = scheduler_for("ddim", SD15, V3)
    theirs = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        steps_offset=1,
        clip_sample=False,
    )
    assert set(ours.config) == set(theirs.config)
    assert all(ours.config[key] == theirs.config[key] for key in ours.config if not key.startswith("_"))


def test_sdxl_beta_has_its_own_end() -> None:
    ours = scheduler_for(SDXL.sampling.scheduler, SD15, SDXL)
    assert isinstance(ours, EulerDiscreteScheduler)
    assert (ours.config.beta_schedule, ours.config.beta_end) == ("scaled_linear", 0.02)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_zero_snr_betas_agree_with_diffusers(schedule) -> None:
    config = ZERO_SNR | {"beta_schedule": schedule}
    ours = np.cumprod(1 - np.array(zero_terminal_snr_betas(NoiseSchedule.from_config(config))))
    theirs = reference_alpha_bar(config, None).numpy()
    assert np.allclose(ours[:-1], theirs[:-1], atol=1e-9)
    assert ours[-1] == pytest.approx(2**-24)


def test_zero_snr_starts_at_pure_noise_with_every_sampler() -> None:
    for name in sorted(set(ROWS) - {"lcm", "tcd"}):
        scheduler = scheduler_for(name, ZERO_SNR, FAMILIES["sd15-v3"])
        scheduler.set_timesteps(10)
        assert float(scheduler.timesteps[0]) == pytest.approx(999, abs=1e-2), name


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(RequestError, match="'magic'.*ddim"):
        scheduler_for("magic", SD15)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "lcm", "tcd"])
def test_as_many_steps_as_are_allowed_can_be_taken(name) -> None:
    """With one more diffusers ends in an IndexError, distilled samplers in a ValueError."""
    scheduler = scheduler_for(name, SD15, V3)
    with pytest.raises(RequestError, match=f"num_inference_steps is 1001, .* {name} takes at most") as said:
        check_steps(name, scheduler, 1001)
    most = int(re.search(r"at most (\d+)", str(said.value))[1])
    check_steps(name, scheduler, most)
    assert sample(scheduler, reference_alpha_bar(SD15, V3), torch.zeros(1, 4, 2, 2), most).isfinite().all()
