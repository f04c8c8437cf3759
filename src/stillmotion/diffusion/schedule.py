"""The noise schedule: how strongly each timestep is noised, and what the network predicts. One source for it.

Motion families, model cards, diffusers' scheduler configs and training runs each say a part of it, so every
field may be open (None). Parts are laid over each other by `merged_over`. Numbers only, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillmotion.errors import RequestError

PredictionType = Literal["epsilon", "v_prediction"]

BETAS = ("beta_schedule", "beta_start", "beta_end")
"""The formula of the betas; `trained_betas` stands in place of all three."""

BASE_PART = ("num_train_timesteps", "prediction_type", "rescale_betas_zero_snr")
"""What stays as the image model was trained, whatever motion is attached to it."""

CARD_FIELDS = (*BETAS, "timestep_spacing", "noise_alpha")
"""What a model card may say of the schedule of its motion."""

_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
_NAMES: dict[tuple[type, ...], str] = {
    (int,): "a whole number",
    (int, float): "a number",
    (str,): "text",
    (bool,): "true or false",
}


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule by diffusers' names; None is "not said". RequestError for a value of a wrong type.

    `beta_schedule` is "linear" (in beta; ldm's "sqrt_linear"), "scaled_linear" (in its root; ldm's "linear")
    or "squaredcos_cap_v2".
    """

    num_train_timesteps: int | None = None
    beta_schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    trained_betas: tuple[float, ...] | None = None
    """betas one by one, in place of the formula"""
    prediction_type: str | None = None
    rescale_betas_zero_snr: bool | None = None
    """the last timestep is pure noise (Lin et al. 2023)"""
    timestep_spacing: str | None = None
    steps_offset: int | None = None
    clip_sample: bool | None = None
    set_alpha_to_one: bool | None = None
    noise_alpha: float | None = None
    """how much of a frame's noise goes on into the next (see noise.py); no field of diffusers' schedulers"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name == "trained_betas":
                object.__setattr__(self, field.name, tuple(map(float, value)))
                continue
            kinds = _KINDS[str(field.type).removesuffix(" | None")]
            good = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            if not good or (float in kinds and not math.isfinite(value)):
                raise RequestError(f"{field.name} is {value!r:.80}, but must be {_NAMES[kinds]}.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """What a scheduler's config says; its other keys are ignored."""
        names = (field.name for field in fields(cls))
        return cls(**{name: config[name] for name in names if config.get(name) is not None})

    def said(self) -> dict[str, Any]:
        """Only the fields that are said, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to_config(self) -> dict[str, Any]:
        """What is said, as the config of a diffusers scheduler."""
        config = {name: value for name, value in self.said().items() if name != "noise_alpha"}
        if self.trained_betas is not None:
            config["trained_betas"] = list(self.trained_betas)
        return config

    def only(self, *names: str) -> NoiseSchedule:
        """These fields of it; the others are open."""
        return NoiseSchedule(**{name: getattr(self, name) for name in names})

    def merged_over(self, base: NoiseSchedule) -> NoiseSchedule:
        """Mine where it is said, else the base's. A formula of mine replaces listed betas of the base."""
        mine = self.said()
        if any(name in mine for name in BETAS):
            mine.setdefault("trained_betas", None)
        return replace(base, **mine)

    def over_base(self, base: NoiseSchedule) -> NoiseSchedule:
        """The schedule of motion on an image model: of the model's only what it was trained to predict stays.

        Motion modules were mostly trained on `linear` betas while Stable Diffusion has `scaled_linear` ones;
        sampling with the wrong ones is the known cause of grey, washed-out clips.
        """
        return self.merged_over(base.only(*BASE_PART))

    def betas(self) -> npt.NDArray[np.float64]:
        """(num_train_timesteps,) float64, not rescaled to zero SNR; what is not said is as diffusers'.

        RequestError for a `beta_schedule` that is not known.
        """
        if self.trained_betas is not None:
            return np.array(self.trained_betas)
        full = self.merged_over(DIFFUSERS)
        name, steps = full.beta_schedule, full.num_train_timesteps
        assert steps is not None and full.beta_start is not None and full.beta_end is not None
        if name == "linear":
            return np.linspace(full.beta_start, full.beta_end, steps, dtype=np.float64)
        if name == "scaled_linear":
            return np.linspace(full.beta_start**0.5, full.beta_end**0.5, steps, dtype=np.float64) ** 2
        if name == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021; it has no ends
            curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - curve[1:] / curve[:-1], 0.999)
        raise RequestError(
            f"beta_schedule is {name!r}, but should be one of linear, scaled_linear, squaredcos_cap_v2."
        )

    def alphas_cumprod(self) -> npt.NDArray[np.float64]:
        """alpha_bar (num_train_timesteps,) float64, with zero terminal SNR where `rescale_betas_zero_snr`.

        That is algorithm 1 of Lin et al. 2023 (https://arxiv.org/abs/2305.08891): shift and scale
        sqrt(alpha_bar) so that the first stays and the last becomes zero.
        """
        alpha_bar: npt.NDArray[np.float64] = np.cumprod(1 - self.betas(), dtype=np.float64)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(alpha_bar)
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alpha_bar

    def __str__(self) -> str:
        """In words: "linear betas 0.00085 to 0.012"."""
        if self.trained_betas is not None:
            return f"{len(self.trained_betas)} betas of its own"
        full = self.merged_over(DIFFUSERS)
        return f"{full.beta_schedule} betas {full.beta_start:g} to {full.beta_end:g}"


DIFFUSERS = NoiseSchedule(1000, "linear", 0.0001, 0.02, prediction_type="epsilon")
"""What diffusers' schedulers take where a config says nothing."""

ANIMATEDIFF = NoiseSchedule(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
"""The betas of AnimateDiff's motion modules for Stable Diffusion 1.5."""
