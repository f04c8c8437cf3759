"""Adapters on a network as hooks that can be removed: nothing of it is replaced, wrapped or renamed.

    output of a layer  ->  output + weight[layer, frame] * lora_layer(input)

So the state_dict is the same while they are on, weight 0 computes exactly what there was before, several act
in parallel, and after `detach` it is the same network bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stillmotion.attachments.base import Attachment, Handle
from stillmotion.errors import AttachError, Mismatch
from stillmotion.lora.deltas import LayerDelta, LoraAlpha
from stillmotion.lora.layers import Bent, DenseDelta, LoraLayer, build_layer, check_layer
from stillmotion.motion.slots import unwrap
from stillmotion.request.layer_weights import LayerWeights

WeightLike = LayerWeights | float | str | Mapping[str, float] | Mapping[int, float]

LoraLayers = Mapping[str, nn.Module]
"""LoRA layers by the path of the layer they act on."""

Placed = Mapping[str, tuple[nn.Module, LoraLayers]]
"""By part (unet, text_encoder, text_encoder_2, motion): the network and its LoRA layers."""

T = TypeVar("T")


class LoraAttachment(Attachment):
    """LoRA layers on the networks of a pipeline until `.detach()`; `.weight` may change between two calls.

    `place` says for a pipeline (or UNet) which layers go where. A weight by frame takes the batch as whole
    clips; where a batch is not made of them, and in text encoders, it is the mean over the frames.
    """

    def __init__(self, place: Callable[[Any], Placed], weight: WeightLike = 1.0) -> None:
        self.place = place
        self.lora_layers: dict[tuple[str, str], nn.Module] = {}
        self.weight = weight

    def network_of(self, target: Any) -> nn.Module:
        """The UNet of a pipeline that has one, else the network that was given: a LoRA may go on any."""
        network = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
        return unwrap(network) if isinstance(network, nn.Module) else nn.Module()

    def on_attach(self, unet: nn.Module) -> Iterator[Handle]:
        """A hook for each layer that a LoRA layer is for."""
        placed = self.place(self.target)
        self.lora_layers = {
            (part, path): lora_layer
            for part, (_, lora_layers) in placed.items()
            for path, lora_layer in lora_layers.items()
        }
        self.weight = self._layer_weights
        for part, (network, lora_layers) in placed.items():
            for path in lora_layers:
                hook = partial(self._after, part, path)
                yield network.get_submodule(path).register_forward_hook(hook)

    @property
    def weight(self) -> LayerWeights:
        """How strongly it acts; numbers, text and mappings are understood."""
        return self._layer_weights

    @weight.setter
    def weight(self, weight: WeightLike) -> None:
        self._layer_weights = LayerWeights.of(weight)
        self._scale = {where: self._layer_weights.for_layer(*where) for where in self.lora_layers}

    def renew(self) -> None:
        """Changes that depend on the weights of the base are computed again where those are others now."""
        for lora_layer in self.lora_layers.values():
            if isinstance(lora_layer, DenseDelta):
                lora_layer.renew()

    def _after(
        self, part: str, path: str, layer: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        pooled, shown = output.ndim == 5, _images(output)
        weight = self._weight(part, path, shown)
        if weight is None:
            return None
        lora_layer, x = self.lora_layers[part, path], args[0]
        _follow(lora_layer, x)
        if isinstance(lora_layer, Bent):
            changed = shown + lora_layer(x, weight).to(output.dtype)
        else:
            changed = shown + weight * _images(lora_layer(x)).to(output.dtype)
        return changed.unflatten(0, (len(output), -1)).transpose(1, 2) if pooled else changed

    def _weight(self, part: str, path: str, output: Tensor) -> float | Tensor | None:
        """A number, one per image of the batch, or None where nothing would be added."""
        scale, context = self._scale[part, path], self.context
        by_frame = self._layer_weights.for_frames(context.total)
        if by_frame is None or not scale:
            return scale or None
        if not any(by_frame):
            return None
        if part.startswith("text") or output.shape[0] % context.frames:
            return scale * sum(by_frame) / len(by_frame)
        shown = [by_frame[frame] for frame in context.images(output.shape[0])]
        each = torch.tensor(shown, dtype=output.dtype, device=output.device) * scale
        return each.view(-1, *[1] * (output.ndim - 1))


def attach_deltas(
    network: nn.Module,
    deltas: Mapping[str, LayerDelta],
    weight: WeightLike = 1.0,
    frames: int | None = None,
    part: str = "unet",
    lora_alpha: LoraAlpha = "use",
) -> LoraAttachment:
    """Attach deltas, by path of the layer, to a network: `with attach_deltas(...):`, or detach later.

    Args:
        network: a UNet, a text encoder or motion.
        deltas: the changes by path.
        weight: how strongly they act.
        frames: images per clip in a batch, for weights by frame.
        part: what the network is called in LayerWeights (unet, text_encoder, motion).
        lora_alpha: whether alpha counts.

    Mismatch when the network has no such layer or one of another size.
    """
    return attach_layers(network, build_layers(network, deltas, lora_alpha), weight, frames, part)


def attach_layers(
    network: nn.Module,
    lora_layers: LoraLayers,
    weight: WeightLike = 1.0,
    frames: int | None = None,
    part: str = "unet",
) -> LoraAttachment:
    """Attach LoRA layers that are built already to a network; the arguments as in `attach_deltas`."""
    return LoraAttachment(partial(_on_one, part, lora_layers), weight).attach(network, frames)


def _on_one(part: str, lora_layers: LoraLayers, network: nn.Module) -> Placed:
    return {part: (network, lora_layers)}


def build_layers(
    network: nn.Module, deltas: Mapping[str, LayerDelta], lora_alpha: LoraAlpha = "use"
) -> dict[str, nn.Module]:
    """A LoRA layer per layer; Mismatch naming the first layer that is not there or does not fit."""
    return _each_layer(network, deltas, partial(build_layer, lora_alpha=lora_alpha))


def check_layers(network: nn.Module, deltas: Mapping[str, LayerDelta]) -> None:
    """Mismatch as `build_layers` gives it, from the shapes alone."""
    _each_layer(network, deltas, check_layer)


def _each_layer(
    network: nn.Module, deltas: Mapping[str, LayerDelta], make: Callable[[nn.Module, LayerDelta], T]
) -> dict[str, T]:
    layers, made = dict(network.named_modules()), {}
    for path, change in deltas.items():
        if path not in layers:
            raise Mismatch(f"there is no layer {path} in {type(network).__name__}")
        try:
            made[path] = make(layers[path], change)
        except Mismatch as error:
            raise Mismatch(f"{path}: {error}") from None
    return made


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
