"""Samplers by short names, on a noise schedule."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.errors import RequestError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "dpmpp_sde": (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {"original_inference_steps": 100}),
    "tcd": ("TCDScheduler", {"original_inference_steps": 100}),
}
"""Our name -> diffusers' class and its own settings (AnimateLCM was distilled with 100 original steps)."""

TERMINAL = 2**-24
"""Stands for zero at the end of a zero-SNR schedule (diffusers' own choice): sigma stays finite, 4096."""


def make_scheduler(name: str, schedule: NoiseSchedule) -> SchedulerMixin:
    """The sampler `name` on a noise schedule; RequestError for an unknown name.

    Offset 1 and no clipping, as AnimateDiff has it; what the schedule leaves open are diffusers' defaults.
    """
    import diffusers

    if name not in ROWS:
        raise RequestError(f"scheduler is {name!r}, but should be one of {', '.join(ROWS)}.")
    class_name, own = ROWS[name]
    cls = getattr(diffusers, class_name)
    accepted = inspect.signature(cls.__init__).parameters
    config = schedule.to_config()
    if schedule.rescale_betas_zero_snr:
        config["timestep_spacing"] = "trailing"  # else sampling would start below the step of pure noise
        if "rescale_betas_zero_snr" not in accepted:
            config["trained_betas"] = zero_terminal_snr_betas(schedule)
        own = own | {"use_karras_sigmas": False}  # up to sigma 4096 no steps would be left for the image
    config |= {"clip_sample": False, "steps_offset": 1} | own
    return cls(**{key: value for key, value in config.items() if key in accepted})


def check_steps(name: str, scheduler: Any, num_inference_steps: int) -> None:
    """RequestError for more steps than the sampler has timesteps; with an offset the last one is lost."""
    config = scheduler.config
    offset = config.get("steps_offset", 0) if config.get("timestep_spacing") == "leading" else 0
    most = config.get("original_inference_steps", config.num_train_timesteps - offset)
    if num_inference_steps > most:
        raise RequestError(
            f"num_inference_steps is {num_inference_steps}, but the scheduler {name} takes at most {most} "
            "here: ask for fewer, or for another scheduler."
        )


def zero_terminal_snr_betas(schedule: NoiseSchedule) -> list[float]:
    """Betas whose last step is pure noise, for samplers that cannot rescale by themselves."""
    alpha_bar = np.maximum(replace(schedule, rescale_betas_zero_snr=True).alphas_cumprod(), TERMINAL)
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return (1 - alphas).tolist()
