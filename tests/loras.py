"""Random LoRAs of every algorithm for tiny networks: canonical parts, of which files and hooks are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.lora.deltas import Algorithm, LayerDelta

Alpha = Callable[[str], float | None]


def no_alpha(path: str) -> None:
    """No layer has an alpha."""


def random_delta(
    layer: nn.Module,
    algorithm: Algorithm = "lora",
    rank: int = 2,
    alpha: float | None = None,
    magnitude: str | None = None,
    tucker: bool = False,
    spread: float = 0.3,
) -> LayerDelta:
    """What a file could hold for a Linear or Conv2d; `magnitude` is rows (usual) or columns, for DoRA."""
    outputs, inputs, *kernel = layer.weight.shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size) * spread

    ones = [1] * len(kernel)
    if algorithm == "lora" and tucker:
        tensors = {"down": draw(rank, inputs, 1, 1), "mid": draw(rank, rank, *kernel)}
        tensors["up"] = draw(outputs, rank, 1, 1)
    elif algorithm == "lora":
        tensors = {"down": draw(rank, inputs, *kernel), "up": draw(outputs, rank, *ones)}
    elif algorithm == "loha":
        tensors = {f"w{i}_a": draw(outputs, rank) for i in (1, 2)}
        tensors |= {
            f"w{i}_b": draw(rank, inputs * kernel[0] * kernel[1] if kernel else inputs) for i in (1, 2)
        }
    elif algorithm == "lokr":
        tensors = {"w1": draw(2, 2), "w2_a": draw(outputs // 2, rank)}
        tensors["w2_b"] = draw(rank, inputs // 2, *kernel)
    else:
        tensors = {"diff": draw(outputs, inputs, *kernel)}
        tensors |= {"bias": draw(outputs)} if layer.bias is not None else {}
    side = {"rows": (outputs, 1, *ones), "columns": (1, inputs, *ones)}.get(magnitude or "")
    return LayerDelta(algorithm, tensors, alpha, draw(*side).abs() + 0.5 if side else None)


def random_parts(
    pipeline: Any,
    parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2"),
    alpha: Alpha = no_alpha,
    convolutions: bool = False,
    seed: int = 0,
    **options: Any,
) -> dict[str, dict[str, LayerDelta]]:
    """LayerDelta for all attentions (and convolutions) of a pipeline's networks, by canonical path."""
    torch.manual_seed(seed)
    found: dict[str, dict[str, LayerDelta]] = {}
    for part in parts:
        network = getattr(pipeline, part, None)
        for path, layer in network.named_modules() if network is not None else ():
            linear = isinstance(layer, nn.Linear) and ("attn" in path or path.startswith("text_proj"))
            if linear or (convolutions and part == "unet" and isinstance(layer, nn.Conv2d)):
                name = path if part == "unet" or path.startswith("text_") else f"text_model.{path}"
                rank = 2 if "to_q" in path else 3
                delta = random_delta(layer, rank=rank, alpha=alpha(path), **options)
                found.setdefault(part, {})[name] = delta
    return found


def motion_parts(motion: nn.Module, seed: int = 0, **options: Any) -> dict[str, dict[str, LayerDelta]]:
    """LayerDelta for all temporal attentions of a MotionModules."""
    torch.manual_seed(seed)
    layers = {p: m for p, m in motion.named_modules() if isinstance(m, nn.Linear) and "attention_blocks" in p}
    return {"motion": {path: random_delta(layer, **options) for path, layer in layers.items()}}


def assert_same(found: dict[str, dict[str, LayerDelta]], wanted: dict[str, dict[str, LayerDelta]]) -> None:
    """The same changes, bit for bit."""
    assert {part: set(layers) for part, layers in found.items()} == {p: set(v) for p, v in wanted.items()}
    for part, layers in wanted.items():
        for path, delta in layers.items():
            other = found[part][path]
            assert (other.algorithm, other.alpha) == (delta.algorithm, delta.alpha), path
            assert other.tensors.keys() == delta.tensors.keys(), path
            assert all(torch.equal(other.tensors[name], t) for name, t in delta.tensors.items()), path
            assert (other.magnitude is None) == (delta.magnitude is None), path
            assert delta.magnitude is None or torch.equal(other.magnitude, delta.magnitude), path
