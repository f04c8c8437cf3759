"""Samplers by short names, on the noise schedule that the motion was trained for.

Motion modules were mostly trained on `linear` betas while Stable Diffusion has `scaled_linear` ones;
sampling with the wrong ones is the known cause of grey, washed-out clips. So the betas come from the motion
family, and what belongs to the base's training (kind of prediction, zero terminal SNR) stays the base's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stillmotion.errors import RequestError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from stillmotion.motion.config import MotionConfig

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

OF_THE_BASE = ("num_train_timesteps", "prediction_type", "rescale_betas_zero_snr")
OF_THE_TRAINING = ("beta_schedule", "beta_start", "beta_end", "timestep_spacing")
TERMINAL = 2**-24
"""Stands for zero at the end of a zero-SNR schedule (diffusers' own choice): sigma stays finite, 4096."""


def make_scheduler(
    name: str, base_config: Mapping[str, Any], spec: MotionConfig | None = None
) -> SchedulerMixin:
    """The sampler `name` for a base with the scheduler config `base_config`; with `spec` for attached motion.

    With motion everything but OF_THE_BASE is as AnimateDiff configures it: betas and spacing of the family
    row, offset 1, no clipping, the rest diffusers' defaults. RequestError for an unknown name.
    """
    import diffusers

    if name not in ROWS:
        raise RequestError(f"scheduler is {name!r}, but should be one of {', '.join(ROWS)}.")
    class_name, own = ROWS[name]
    cls = getattr(diffusers, class_name)
    accepted = inspect.signature(cls.__init__).parameters
    config = {key: base_config[key] for key in OF_THE_BASE if key in base_config}
    if spec is None:
        kept = (*OF_THE_TRAINING, "trained_betas", "set_alpha_to_one")
        config |= {key: base_config[key] for key in kept if base_config.get(key) is not None}
    else:
        config |= {key: getattr(spec, key) for key in OF_THE_TRAINING}
    if config.get("rescale_betas_zero_snr"):
        config["timestep_spacing"] = "trailing"  # else sampling would start below the step of pure noise
        if "rescale_betas_zero_snr" not in accepted:
            config["trained_betas"] = zero_terminal_snr_betas(config)
        own = own | {"use_karras_sigmas": False}  # up to sigma 4096 no steps would be left for the image
    config |= {"clip_sample": False, "steps_offset": 1} | own
    return cls(**{key: value for key, value in config.items() if key in accepted})


def check_steps(name: str, scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """RequestError for more steps than the sampler has timesteps; with an offset the last one is lost."""
    config = scheduler.config
    offset = config.get("steps_offset", 0) if config.get("timestep_spacing") == "leading" else 0
    most = config.get("original_inference_steps", config.num_train_timesteps - offset)
    if num_inference_steps > most:
        raise RequestError(
            f"num_inference_steps is {num_inference_steps}, but the scheduler {name} takes at most {most} "
            "here: ask for fewer, or for another scheduler."
        )


def zero_terminal_snr_betas(config: Mapping[str, Any]) -> list[float]:
    """Betas whose last step is pure noise, for samplers that cannot rescale by themselves."""
    steps, start, end = (config[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    alpha_bar = np.maximum(alphas_cumprod(config["beta_schedule"], start, end, steps, True), TERMINAL)
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return (1 - alphas).tolist()


def alphas_cumprod(
    schedule: str, start: float, end: float, steps: int = 1000, zero_terminal_snr: bool = False
) -> np.ndarray:
    """alpha_bar (steps,) float64 of a schedule by diffusers' name.

    "linear" is linear in beta, "scaled_linear" in its root; "squaredcos_cap_v2" is Nichol & Dhariwal 2021 and
    ignores the ends. Zero terminal SNR is algorithm 1 of Lin et al. 2023 (https://arxiv.org/abs/2305.08891):
    shift and scale sqrt(alpha_bar) so that the first stays and the last becomes zero.
    """
    if schedule == "linear":
        betas = np.linspace(start, end, steps, dtype=np.float64)
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2
    elif schedule == "squaredcos_cap_v2":
        curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    else:
        raise RequestError(
            f"beta_schedule is {schedule!r}, but should be one of linear, scaled_linear, squaredcos_cap_v2."
        )
    alpha_bar = np.cumprod(1 - betas)
    if zero_terminal_snr:
        root = np.sqrt(alpha_bar)
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alpha_bar
