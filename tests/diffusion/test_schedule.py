"""NoiseSchedule against diffusers' own schedulers; how parts of it are laid over each other."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from stillmotion.diffusion.schedule import ANIMATEDIFF, DIFFUSERS, NoiseSchedule
from stillmotion.errors import RequestError

BASE = NoiseSchedule.from_config(DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085).config)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", [{"trained_betas": (0.1, 0.2, 0.3)}, {}, {"beta_end": 0.05}, "linear"])
def test_alphas_are_those_of_diffusers(betas, zero_snr) -> None:
    given = ANIMATEDIFF.said() if betas == "linear" else betas
    ours = NoiseSchedule(**given, rescale_betas_zero_snr=zero_snr)
    theirs = DDPMScheduler(**ours.to_config())
    assert np.allclose(ours.alphas_cumprod(), theirs.alphas_cumprod, atol=2e-5, rtol=2e-3)
    assert ours.alphas_cumprod().dtype == np.float64


def test_a_config_comes_back_as_it_was() -> None:
    config = DDIMScheduler(trained_betas=[0.1, 0.2], timestep_spacing="trailing").config
    again = DDIMScheduler(**NoiseSchedule.from_config(config).to_config()).config
    assert all(again[name] == value for name, value in config.items() if not name.startswith("_"))
    assert NoiseSchedule.from_config({"solver_order": 2, "beta_end": None}).to_config() == {}


def test_mine_where_it_is_said_else_the_bases() -> None:
    mine = NoiseSchedule(beta_end=0.02, noise_alpha=0.0, rescale_betas_zero_snr=False)
    both = mine.merged_over(NoiseSchedule(beta_start=0.1, noise_alpha=2.0, rescale_betas_zero_snr=True))
    assert both.said() == {
        "beta_start": 0.1,
        "beta_end": 0.02,
        "noise_alpha": 0.0,
        "rescale_betas_zero_snr": False,
    }
    assert "noise_alpha" not in both.to_config()


def test_a_formula_replaces_listed_betas_and_a_list_a_formula() -> None:
    listed = NoiseSchedule(trained_betas=(0.1, 0.2))
    assert ANIMATEDIFF.merged_over(listed).trained_betas is None
    assert NoiseSchedule(timestep_spacing="trailing").merged_over(listed).trained_betas == (0.1, 0.2)
    assert len(listed.merged_over(ANIMATEDIFF).betas()) == 2


def test_motion_keeps_of_the_base_what_it_predicts() -> None:
    base = NoiseSchedule(prediction_type="v_prediction", set_alpha_to_one=False).merged_over(BASE)
    both = ANIMATEDIFF.over_base(base)
    assert both.prediction_type == "v_prediction" and both.set_alpha_to_one is None
    assert (both.beta_schedule, both.num_train_timesteps) == ("linear", 1000)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("beta_start", "0.1", "a number"),
        ("beta_end", float("nan"), "a number"),
        ("beta_schedule", 3, "text"),
        ("num_train_timesteps", 10.5, "a whole number"),
        ("num_train_timesteps", True, "a whole number"),
        ("rescale_betas_zero_snr", 1, "true or false"),
    ],
)
def test_a_value_of_a_wrong_type_is_said(field, value, kind) -> None:
    with pytest.raises(RequestError, match=f"{field} is .* but must be {kind}"):
        NoiseSchedule(**{field: value})
    assert NoiseSchedule(**{field: None}) == NoiseSchedule()


def test_an_unknown_formula_is_said() -> None:
    with pytest.raises(RequestError, match="beta_schedule is 'magic'.*squaredcos_cap_v2"):
        NoiseSchedule(beta_schedule="magic").alphas_cumprod()


def test_in_words() -> None:
    assert str(ANIMATEDIFF) == "linear betas 0.00085 to 0.012"
    assert str(DIFFUSERS) == "linear betas 0.0001 to 0.02"
