"""Motion that training starts from, from a file, a folder or inside the base, and the folder it ends in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillmotion.atomic import write_text
from stillmotion.checkpoints.hub import INSIDE, locate
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import WrongKind
from stillmotion.motion.families import MotionFamily
from stillmotion.request.model_card import ModelCard


def load_motion(source: str) -> MotionModel:
    """Motion in fp32 with the schedule that its card or family says; WrongKind where it cannot be trained."""
    net = MotionModel.load(source, dtype=torch.float32)
    if net.spec.conv_in is not None:
        raise WrongKind(f"{source} is PIA, which needs given images: start from another motion module.")
    place = locate(source)
    place = next((place / part for part in INSIDE if (place / part).is_dir()), place)
    net.family = net.family.updated(**ModelCard.read(place).schedule.said())
    return net


def motion_for(motion: str | None, base: str) -> MotionModel:
    """The motion that is named, or else the one inside the base; WrongKind if it has none."""
    place = locate(motion or base)
    if motion is None and not any((place / part).is_dir() for part in INSIDE):
        raise WrongKind(
            f"{base} brings no motion of its own, and a motion LoRA is made for a motion module: name one "
            "that fits it with --motion FILE."
        )
    return load_motion(motion or base)


def resolve_noise_alpha(noise_alpha: float | None, family: MotionFamily | None) -> float:
    """The `noise_alpha` of a run: what its config says, else that of the given motion, else 0."""
    unsaid = (family and family.schedule.noise_alpha) or 0.0
    return unsaid if noise_alpha is None else noise_alpha


def describe_origin(net: MotionModel) -> str:
    """What is started from, in words."""
    spec = net.spec
    return (
        f"{net.name}: {spec.name} motion, {spec.positions} positions, {spec.motion_norm} norms, "
        f"{net.family.schedule}"
    )


def save_motion(
    folder: Path,
    motion: MotionModel,
    weights: Mapping[str, Tensor],
    defaults: Mapping[str, Any],
    schedule: Mapping[str, Any],
) -> None:
    """A folder that MotionModel.load and diffusers' MotionAdapter.from_pretrained read, with its card.

    Args:
        folder: is made; its parent's name is that of the motion.
        motion: whose config, buffers and extra tensors are kept.
        weights: its parameters by name, on the CPU.
        defaults: frames, width, height, fps of its clips.
        schedule: the noise it was trained with, as in a model card.
    """
    state = {name: buffer.cpu() for name, buffer in motion.state_dict().items()} | dict(weights)
    net = MotionModel.from_state(motion.family.updated(**defaults, **schedule), state)
    net.extra = motion.extra
    card = {"name": folder.parent.name, "defaults": dict(defaults), "schedule": dict(schedule)}
    # the card first: weights that appear after a kill between the two are never without their noise
    write_text(folder / "stillmotion.json", json.dumps(card, indent=1) + "\n")
    net.save(folder)
