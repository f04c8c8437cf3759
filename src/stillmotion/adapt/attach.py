"""Adapters on a network as hooks that come off again: nothing of it is replaced, wrapped or renamed.

    output of a layer  ->  output + weight[layer, frame] * rider(input)

So the state_dict is the same while they are on, weight 0 computes exactly what there was before, several act
in parallel, and after `detach` it is the same network bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.adapt.factors import Factors, Parity
from stillmotion.adapt.layers import Bent, LowRank, rider
from stillmotion.errors import AttachError, Mismatch
from stillmotion.hooks import Riding
from stillmotion.strength import Strength

Weight = Strength | float | str | Mapping[str | int, float]


class Adaptation(Riding):
    """Riders on layers of a network until `.detach()`; `.strength` and `.frames` may change between calls.

    `part` is what the network is called in a Strength (unet, text_encoder, motion). A strength with a curve
    takes the batch as clips of `frames` pictures; with fewer pictures in a batch, its mean.
    """

    def __init__(
        self,
        network: nn.Module,
        riders: Mapping[str, nn.Module],
        strength: Weight = 1.0,
        frames: int = 1,
        part: str = "unet",
    ) -> None:
        super().__init__()
        self.riders, self.part, self.frames, self.strength = dict(riders), part, frames, strength
        layers = {path: network.get_submodule(path) for path in riders}
        self._handles = [
            layer.register_forward_hook(partial(self._after, path)) for path, layer in layers.items()
        ]

    @property
    def strength(self) -> Strength:
        """How strongly it acts; numbers, text and mappings are understood."""
        return self._strength

    @strength.setter
    def strength(self, strength: Weight) -> None:
        self._strength = Strength.of(strength)
        self._scale = {path: self._strength.at(self.part, path) for path in self.riders}

    def _after(self, path: str, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        pooled, shown = output.ndim == 5, _pictures(output)
        weight = self._weight(path, shown)
        if weight is None:
            return None
        riding, x = self.riders[path], args[0]
        _follow(riding, x)
        if isinstance(riding, Bent):
            changed = shown + riding(x, weight).to(output.dtype)
        else:
            changed = shown + weight * _pictures(riding(x)).to(output.dtype)
        return changed.unflatten(0, (len(output), -1)).transpose(1, 2) if pooled else changed

    def _weight(self, path: str, output: Tensor) -> float | Tensor | None:
        """A number, one per picture of the batch, or None where nothing would be added."""
        scale, curve = self._scale[path], self._strength.along(self.frames)
        if curve is None or not scale:
            return scale or None
        if not any(curve):
            return None
        if self.part.startswith("text") or output.shape[0] % self.frames:
            return scale * sum(curve) / len(curve)
        each = torch.tensor(curve, dtype=output.dtype, device=output.device) * scale
        return each.repeat(output.shape[0] // self.frames).view(-1, *[1] * (output.ndim - 1))


def adapt(
    network: nn.Module,
    factors: Mapping[str, Factors],
    strength: Weight = 1.0,
    frames: int = 1,
    part: str = "unet",
    parity: Parity = "kohya",
) -> Adaptation:
    """Put factors, by path of the layer, on a network: `with adapt(...):`, or `.detach()` on what it returns.

    Mismatch when the network has no such layer or one of another size.
    """
    return Adaptation(network, riders_for(network, factors, parity), strength, frames, part)


def riders_for(
    network: nn.Module, factors: Mapping[str, Factors], parity: Parity = "kohya"
) -> dict[str, nn.Module]:
    """A rider per layer; Mismatch naming the first layer that is not there or does not fit."""
    layers, riders = dict(network.named_modules()), {}
    for path, change in factors.items():
        if path not in layers:
            raise Mismatch(f"there is no layer {path} in {type(network).__name__}")
        try:
            riders[path] = rider(layers[path], change, parity)
        except Mismatch as error:
            raise Mismatch(f"{path}: {error}") from None
    return riders


def fresh(
    network: nn.Module,
    wanted: Callable[[str, nn.Module], bool],
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> nn.ModuleDict:
    """Untrained LoRAs for the layers that `wanted(path, layer)` picks, by path with "/" for "."."""
    found = {
        path.replace(".", "/"): LowRank(layer, rank, alpha, dropout)
        for path, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted(path, layer)
    }
    if not found:
        raise AttachError(f"{type(network).__name__} has no layer of the wanted kind for a LoRA.")
    return nn.ModuleDict(found)


def _pictures(output: Tensor) -> Tensor:
    """(b, c, f, h, w) of a norm that motion pools over the clip -> (b*f, c, h, w); others as they are."""
    return output.transpose(1, 2).flatten(0, 1) if output.ndim == 5 else output


def _follow(riding: nn.Module, x: Tensor) -> None:
    """Move to where the layer works: the network's own `.to()` does not reach it. Training casts nothing."""
    tensors = (*riding.parameters(), *riding.buffers())
    own = next((t for t in tensors if (t.device, t.dtype) != (x.device, x.dtype)), None)
    if own is None:
        return
    if own.requires_grad and torch.is_grad_enabled():
        if own.device == x.device and torch.is_autocast_enabled(x.device.type):
            return
        raise AttachError(f"The adapter in training is {own.dtype}, its layer {x.dtype}: give both the same.")
    with torch.inference_mode(False), torch.no_grad():
        riding.to(device=x.device, dtype=x.dtype)
