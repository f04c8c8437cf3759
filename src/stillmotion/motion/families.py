"""Families of motion modules as data: shape of the modules, noise they were trained on, how to sample.

The public ones are the rows of `FAMILIES`; installed models bring their own in their cards. The facts are
those of the original code and of the users' files: anatomy and places of the modules from the AnimateDiff
repository (v1, v2, v3, SDXL-beta), positions and schedules from each model's own release.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from stillmotion.diffusion.schedule import CARD_FIELDS, NoiseSchedule
from stillmotion.motion.config import MotionConfig
from stillmotion.request.installed_models import installed_models
from stillmotion.request.model_card import ModelCard


@dataclass(frozen=True)
class SamplingDefaults:
    """What requests are filled with by default, in the words of a Request; None is "not said"."""

    scheduler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None

    def said(self) -> dict[str, Any]:
        """Only the fields that are said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class MotionFamily:
    """Modules of one shape with the settings they were trained for; a module whose family is not known has
    `UNKNOWN`'s settings."""

    config: MotionConfig
    schedule: NoiseSchedule
    sampling: SamplingDefaults

    @property
    def name(self) -> str:
        """The name of the family, such as sd15-v2."""
        return self.config.name

    @property
    def base(self) -> str:
        """The family of text-to-image models that it fits: sd15, sdxl, ..."""
        return self.config.base

    def columns(self) -> dict[str, Any]:
        """All settings side by side by name; of schedule and sampling what is said."""
        return asdict(self.config) | self.schedule.said() | self.sampling.said()

    def updated(self, **columns: Any) -> MotionFamily:
        """The family with other values in some columns, whichever part they are in."""
        parts = {name: getattr(self, name) for name in ("config", "schedule", "sampling")}
        for name, part in parts.items():
            own = {field.name: columns.pop(field.name) for field in fields(part) if field.name in columns}
            parts[name] = replace(part, **own)
        if columns:
            raise TypeError(f"A family of motion has no column {', '.join(columns)}.")
        return MotionFamily(**parts)


COLUMNS = frozenset(
    [*(field.name for part in (MotionConfig, SamplingDefaults) for field in fields(part)), *CARD_FIELDS]
)
"""Names of all columns of a family."""

V1 = MotionFamily(
    MotionConfig("sd15-v1", positions=24, resnet_norm="pooled"),
    NoiseSchedule(
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        noise_alpha=0.0,
    ),
    SamplingDefaults("ddim", 25, 7.5, 16, 8.0, 512, 512),
)

V2 = V1.updated(name="sd15-v2", mid=True, positions=32, resnet_norm="per-frame")

V3 = V2.updated(name="sd15-v3", mid=False)

PIA = V3.updated(name="pia", conv_in=9)

LCM = V2.updated(name="animatelcm", positions=64, scheduler="lcm", num_inference_steps=8, guidance_scale=1.5)

LIGHTNING = V2.updated(
    name="lightning",
    scheduler="euler",
    timestep_spacing="trailing",
    num_inference_steps=4,
    guidance_scale=1.0,
)

SDXL = V1.updated(
    name="sdxl-beta",
    channels=(320, 640, 1280),
    layers=(2, 2, 2),
    heads=(8, 8, 8),
    positions=32,
    resnet_norm="per-frame",
    motion_norm="pooled",
    base="sdxl",
    beta_schedule="scaled_linear",
    beta_end=0.020,
    scheduler="euler",
    num_inference_steps=100,
    guidance_scale=8.5,
    width=1024,
    height=1024,
)

HOTSHOT = SDXL.updated(
    name="hotshot-xl",
    positions=24,
    motion_norm="per-frame",
    beta_end=0.012,
    scheduler="euler_a",
    num_inference_steps=30,
    frames=8,
    width=512,
    height=512,
)

FAMILIES: dict[str, MotionFamily] = {
    row.name: row for row in (V1, V2, V3, SDXL, HOTSHOT, LCM, LIGHTNING, PIA)
}
"""The public families by name."""

UNKNOWN = V1.updated(
    name="custom", base="custom", positions=32, resnet_norm="per-frame", width=None, height=None
)
"""Modules of a shape of their own: AnimateDiff's noise and sampling; their size is that of the base."""


def family_of_config(config: MotionConfig) -> MotionFamily:
    """The settings of the public family of this name for these modules, else those of `UNKNOWN`."""
    return replace(FAMILIES.get(config.name, UNKNOWN), config=config)


def installed_families() -> dict[str, MotionFamily]:
    """Families of the installed models by name: "motion", "schedule" and "defaults" in their cards."""
    cards = [ModelCard.read(folder) for folder in installed_models().values()]
    return {card.family: _family_of_card(card) for card in cards if card.family and card.motion}


def known_families() -> dict[str, MotionFamily]:
    """The public families and those of installed models."""
    return installed_families() | FAMILIES


def _family_of_card(card: ModelCard) -> MotionFamily:
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in card.motion.items()}
    sampling = {name: value for name, value in card.defaults.items() if name in COLUMNS}
    own = {"name": card.family, "base": card.family, **shape, **card.schedule.said(), **sampling}
    return UNKNOWN.updated(**own)
