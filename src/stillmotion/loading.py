"""Names, files and folders become the parts of an Animator: pipeline, motion, LoRAs and their cards.

Everything that can be refused without loading gigabytes is refused first. Knows no prompts, samples nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.card import BUNDLED, ModelCard, bundled_folder
from stillmotion.errors import Mismatch, RequestError, WeightsError, WrongKind
from stillmotion.fast.precision import best_device, best_dtype
from stillmotion.motion_model import MotionModel
from stillmotion.request import DTYPES
from stillmotion.weights.base import load_base
from stillmotion.weights.fit import check_fits
from stillmotion.weights.hub import INSIDE, locate
from stillmotion.weights.identify import identify
from stillmotion.weights.lora import read_lora

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

NO_MOTION = "none"
"""`motion="none"`: the base alone, for stills."""


@dataclass(frozen=True)
class Parts:
    """What an Animator is made of; `models` are the fields of a Request that name it all again."""

    pipeline: DiffusionPipeline
    motion: MotionModel | None
    card: ModelCard
    models: dict[str, Any]


def load_parts(
    base: str | Path | None = None,
    motion: str | Path | None = None,
    loras: Mapping[str, float] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Parts:
    """Loads base, motion and LoRAs and checks that they fit; see `Animator.load`. Raises WeightsError."""
    device = torch.device(device) if device is not None else best_device()
    dtype = as_dtype(dtype) if dtype is not None else best_dtype(device)
    place = locate(base) if base is not None else bundled_folder()
    motion_place = _motion_place(motion, base or BUNDLED, place)
    net = _load_motion(motion_place) if motion_place else None
    adapters = _read_loras(loras or {}, place)
    pipeline = load_base(place, {"vae": torch.float32, "default": dtype})
    pipeline.set_progress_bar_config(disable=True)
    if net is not None:
        check_fits(net.spec, pipeline.unet.config, str(motion or motion_place), str(base or BUNDLED))
        net.to(device, dtype)
    _apply_loras(pipeline, adapters, loras or {})
    card = _merged(ModelCard.read(place), ModelCard.read(motion_place) if motion_place else ModelCard())
    models = {
        "base": str(base) if base is not None else BUNDLED,
        "motion": str(motion) if motion is not None else None,
        "loras": {str(lora): float(weight) for lora, weight in (loras or {}).items()},
        "dtype": str(dtype).removeprefix("torch."),
    }
    return Parts(pipeline.to(device), net, card, models)


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """float32, bfloat16, float16 or their short names (fp32, bf16, fp16) as a torch dtype."""
    if isinstance(name, torch.dtype):
        return name
    long = DTYPES.get(name, name)
    if long not in DTYPES.values():
        raise RequestError(
            f"dtype is {name!r}, but should be one of {', '.join(dict.fromkeys(DTYPES.values()))}."
        )
    return getattr(torch, long)


def _motion_place(motion: str | Path | None, base: str | Path, place: Path) -> Path | None:
    """Where the motion is: named, or inside the folder of the base; None for stills."""
    if motion is not None:
        if str(motion) == NO_MOTION:
            return None
        place = locate(motion)
    inside = next((place / part for part in INSIDE if (place / part).is_dir()), None)
    if inside is None and motion is None:
        raise WeightsError(
            f"{base} is a text-to-image model and brings no motion of its own: name a motion module that "
            "fits it with motion= (--motion FILE), such as v3_sd15_mm.ckpt for Stable Diffusion 1.5, or "
            f"motion={NO_MOTION!r} for stills."
        )
    return inside or place


def _load_motion(place: Path) -> MotionModel:
    net = MotionModel.load(place)
    if net.spec.conv_in is not None:
        raise WrongKind(
            f"{place.name} is PIA, which sets a given picture in motion; from text alone use another motion "
            "module, such as v3_sd15_mm.ckpt."
        )
    return net.eval().requires_grad_(False)


def _merged(base: ModelCard, motion: ModelCard) -> ModelCard:
    """The motion's card wins over the base's."""
    return ModelCard(
        name=base.name or motion.name,
        family=base.family or motion.family,
        defaults=base.defaults | motion.defaults,
        schedule=base.schedule | motion.schedule,
        concepts=base.concepts or motion.concepts,
    )


def _read_loras(loras: Mapping[str, float], base: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each; WrongKind or Mismatch for what the base at this place cannot take."""
    if not loras:
        return {}
    family = identify(base).base
    known = family if family != "custom" else None  # of other bases only the shapes can tell
    return {lora: read_lora(lora, known) for lora in loras}


def _apply_loras(
    pipeline: DiffusionPipeline, adapters: Mapping[str, dict[str, Tensor]], loras: Mapping[str, float]
) -> None:
    """Puts them on as adapters, by diffusers' own loader; Mismatch if one has no layer in this base."""
    names = [f"lora{number}" for number in range(len(adapters))]
    for name, (lora, state) in zip(names, adapters.items(), strict=True):
        try:
            pipeline.load_lora_weights(state, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:
            raise Mismatch(
                f"{lora} cannot be applied to this base as a LoRA: {_first_line(error)}"
            ) from error
        if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
            raise Mismatch(f"{lora} has no layers that this base has: it is for another kind of model.")
    if names:
        pipeline.set_adapters(names, [float(weight) for weight in loras.values()])


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 200 else text[:197] + "..."
