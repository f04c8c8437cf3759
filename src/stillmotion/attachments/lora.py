"""Adapters on a network as hooks that can be removed: nothing of it is replaced, wrapped or renamed.

    output of a layer  ->  output + weight[layer, frame] * lora_layer(input)

So the state_dict is the same while they are on, weight 0 computes exactly what there was before, several act
in parallel, and after `detach` it is the same network bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.attachments.hooks import HookSet
from stillmotion.errors import AttachError, Mismatch
from stillmotion.lora.deltas import LayerDelta, LoraAlpha
from stillmotion.lora.layers import Bent, LoraLayer, build_layer
from stillmotion.request.layer_weights import LayerWeights

WeightLike = LayerWeights | float | str | Mapping[str | int, float]


class LoraLayersAttachment(HookSet):
    """LoRA layers on a network until `.detach()`; `.weight` and `.frames` may change between calls.

    `part` is what the network is called in LayerWeights (unet, text_encoder, motion). A weight by frame
    takes the batch as clips of `frames` images; with fewer images in a batch, its mean.
    """

    def __init__(
        self,
        network: nn.Module,
        lora_layers: Mapping[str, nn.Module],
        weight: WeightLike = 1.0,
        frames: int = 1,
        part: str = "unet",
    ) -> None:
        super().__init__()
        self.lora_layers, self.part, self.frames, self.weight = dict(lora_layers), part, frames, weight
        layers = {path: network.get_submodule(path) for path in lora_layers}
        self._handles = [
            layer.register_forward_hook(partial(self._after, path)) for path, layer in layers.items()
        ]

    @property
    def weight(self) -> LayerWeights:
        """How strongly it acts; numbers, text and mappings are understood."""
        return self._layer_weights

    @weight.setter
    def weight(self, weight: WeightLike) -> None:
        self._layer_weights = LayerWeights.of(weight)
        self._scale = {path: self._layer_weights.for_layer(self.part, path) for path in self.lora_layers}

    def _after(self, path: str, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        pooled, shown = output.ndim == 5, _images(output)
        weight = self._weight(path, shown)
        if weight is None:
            return None
        lora_layer, x = self.lora_layers[path], args[0]
        _follow(lora_layer, x)
        if isinstance(lora_layer, Bent):
            changed = shown + lora_layer(x, weight).to(output.dtype)
        else:
            changed = shown + weight * _images(lora_layer(x)).to(output.dtype)
        return changed.unflatten(0, (len(output), -1)).transpose(1, 2) if pooled else changed

    def _weight(self, path: str, output: Tensor) -> float | Tensor | None:
        """A number, one per image of the batch, or None where nothing would be added."""
        scale, by_frame = self._scale[path], self._layer_weights.for_frames(self.frames)
        if by_frame is None or not scale:
            return scale or None
        if not any(by_frame):
            return None
        if self.part.startswith("text") or output.shape[0] % self.frames:
            return scale * sum(by_frame) / len(by_frame)
        each = torch.tensor(by_frame, dtype=output.dtype, device=output.device) * scale
        return each.repeat(output.shape[0] // self.frames).view(-1, *[1] * (output.ndim - 1))


def attach_deltas(
    network: nn.Module,
    deltas: Mapping[str, LayerDelta],
    weight: WeightLike = 1.0,
    frames: int = 1,
    part: str = "unet",
    lora_alpha: LoraAlpha = "use",
) -> LoraLayersAttachment:
    """Attach deltas, by path of the layer, to a network: `with attach_deltas(...):`, or detach later.

    Mismatch when the network has no such layer or one of another size.
    """
    return LoraLayersAttachment(network, build_layers(network, deltas, lora_alpha), weight, frames, part)


def build_layers(
    network: nn.Module, deltas: Mapping[str, LayerDelta], lora_alpha: LoraAlpha = "use"
) -> dict[str, nn.Module]:
    """A LoRA layer per layer; Mismatch naming the first layer that is not there or does not fit."""
    layers, lora_layers = dict(network.named_modules()), {}
    for path, change in deltas.items():
        if path not in layers:
            raise Mismatch(f"there is no layer {path} in {type(network).__name__}")
        try:
            lora_layers[path] = build_layer(layers[path], change, lora_alpha)
        except Mismatch as error:
            raise Mismatch(f"{path}: {error}") from None
    return lora_layers


def new_lora_layers(
    network: nn.Module,
    wanted: Callable[[str, nn.Module], bool],
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> nn.ModuleDict:
    """Untrained LoRAs for the layers that `wanted(path, layer)` picks, by path with "/" for "."."""
    found = {
        path.replace(".", "/"): LoraLayer(layer, rank, alpha, dropout)
        for path, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted(path, layer)
    }
    if not found:
        raise AttachError(f"{type(network).__name__} has no layer of the wanted kind for a LoRA.")
    return nn.ModuleDict(found)


def _images(output: Tensor) -> Tensor:
    """(b, c, f, h, w) of a norm that motion pools over the clip -> (b*f, c, h, w); others as they are."""
    return output.transpose(1, 2).flatten(0, 1) if output.ndim == 5 else output


def _follow(lora_layer: nn.Module, x: Tensor) -> None:
    """Move to where the layer works: the network's own `.to()` does not reach it. Training casts nothing."""
    tensors = (*lora_layer.parameters(), *lora_layer.buffers())
    own = next((t for t in tensors if (t.device, t.dtype) != (x.device, x.dtype)), None)
    if own is None:
        return
    if own.requires_grad and torch.is_grad_enabled():
        if own.device == x.device and torch.is_autocast_enabled(x.device.type):
            return
        raise AttachError(f"The adapter in training is {own.dtype}, its layer {x.dtype}: give both the same.")
    with torch.inference_mode(False), torch.no_grad():
        lora_layer.to(device=x.device, dtype=x.dtype)
