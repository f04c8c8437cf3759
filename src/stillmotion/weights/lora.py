"""LoRAs for the image model, ready for `pipeline.load_lora_weights`. Knows formats; applies nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stillmotion.errors import Mismatch, WrongKind
from stillmotion.weights.files import read_state
from stillmotion.weights.fit import expect
from stillmotion.weights.hub import locate
from stillmotion.weights.identify import identify
from stillmotion.weights.kinds import BASES

if TYPE_CHECKING:
    from torch import Tensor

LOADABLE = ("LoRA", "LoCon", "DoRA")
"""Algorithms that diffusers loads."""


def read_lora(source: str | Path, base: str | None = None) -> dict[str, Tensor]:
    """The tensors of a style LoRA or of the v3 domain adapter, named as diffusers' loader wants them.

    `base` is the family it is meant for (sd15, sd2, sdxl). Raises `WrongKind` for motion LoRAs and algorithms
    that diffusers does not load, `Mismatch` for another base.
    """
    path = locate(source)
    found = identify(path)
    expect(found, "lora", "domain-adapter")
    if found.kind == "lora" and found.family not in LOADABLE:
        raise WrongKind(
            f"{found.name} is {found.title}; stillmotion loads {', '.join(LOADABLE)}. "
            "Convert it, or merge it into a checkpoint with the tool it was made with."
        )
    if base and found.base and found.base != base:
        raise Mismatch(
            f"{found.name} is a LoRA for {BASES[found.base]}, but the base is {BASES.get(base, base)}. "
            "Use a LoRA made for this base, or a base of its family."
        )
    state = read_state(path)
    if found.layout == "attention-processor" and not any(name.startswith("unet.") for name in state):
        return {f"unet.{name}": tensor for name, tensor in state.items()}
    return state
