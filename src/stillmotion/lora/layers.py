"""What rides on one Linear, Conv2d or norm layer: input -> what the adapter adds to the output."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillmotion.errors import Mismatch
from stillmotion.lora.deltas import LayerDelta, LoraAlpha


class LoraLayer(nn.Module):
    """up(down(x)) * scale, the plain LoRA of a layer; fresh ones add nothing, as `up` is zero.

    A convolution's down has its kernel, stride, padding and dilation; its up is 1x1 (LoCon).
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: it is no part of this module
        inputs, outputs, kernel = _sizes(layer)
        self.down = nn.Parameter(torch.empty(rank, inputs, *kernel))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *(1 for _ in kernel)))
        nn.init.kaiming_uniform_(self.down, a=sqrt(5))
        self.alpha, self.scale = alpha, 1.0 if alpha is None else alpha / rank
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        layer, x = self.layer[0], self.dropout(x)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(_convolved(layer, x, self.down), self.up) * self.scale
        return F.linear(F.linear(x, self.down), self.up) * self.scale


class DenseDelta(nn.Module):
    """The change as a whole matrix: LoHa, LoKr, Tucker cores, differences, changes of a bias or a norm."""

    change: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, delta: LayerDelta, lora_alpha: LoraAlpha) -> None:
        super().__init__()
        self.layer = (layer,)
        self.delta, self.lora_alpha, self.at = delta, lora_alpha, 1.0
        self.register_buffer("change", torch.empty(0))
        self.register_buffer("bias", None)
        self._compute()

    def forward(self, x: Tensor) -> Tensor:
        return _applied(self.layer[0], x, self.change, self.bias)

    def renew(self) -> None:
        """Compute it again if it depends on weights of the layer and these are others now."""
        if self.delta.needs_weight and self._of != _probe(self.layer[0]):
            self._compute()

    def _compute(self) -> None:
        layer: Any = self.layer[0]
        self.change = self.delta.change(layer.weight, self.at, self.lora_alpha)
        self.bias = self.delta.bias_change(layer.bias, self.at, self.lora_alpha)
        self._of = _probe(layer) if self.delta.needs_weight else []


def _probe(layer: Any) -> list[float]:
    """A few numbers of its weight, which nearly every change of it changes."""
    weight: Tensor = layer.weight
    return weight.detach().flatten()[:: max(1, weight.numel() // 64)].tolist()


class Shift(nn.Module):
    """A change of the bias alone."""

    bias: Tensor

    def __init__(self, bias: Tensor, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        ones = min(x.ndim, 4) - 2 if self.channels_first else 0
        return self.bias.view(-1, *[1] * ones)


class Bent(DenseDelta):
    """A change that is not proportional to its weight (DoRA, BOFT): a matrix for each weight."""

    def forward(self, x: Tensor, lora_weight: float | Tensor = 1.0) -> Tensor:
        """What is added at one weight, or at one of each image of the batch."""
        if isinstance(lora_weight, Tensor):
            each = lora_weight.flatten()
            rows = {value: each == value for value in each.unique().tolist()}
            parts = {value: self.forward(x[mask], value) for value, mask in rows.items()}
            first = next(iter(parts.values()))
            added = first.new_empty(len(x), *first.shape[1:])
            for value, mask in rows.items():
                added[mask] = parts[value]
            return added
        if lora_weight != self.at:
            self.at = lora_weight
            self._compute()
            self.change, self.bias = self.change.to(x), None if self.bias is None else self.bias.to(x)
        return super().forward(x)


def check_layer(layer: Any, delta: LayerDelta) -> None:
    """Mismatch if the sizes of layer and delta do not agree; nothing but sizes is computed."""
    shape = _shape(layer, delta)
    delta.check(shape)
    bias = delta.bias_change(layer.bias)
    if bias is not None and bias.numel() != shape[0]:
        raise Mismatch(f"a change of the bias of {bias.numel()} does not fit {layer}")


def build_layer(layer: Any, delta: LayerDelta, lora_alpha: LoraAlpha = "use") -> nn.Module:
    """The module that adds this delta to this layer; Mismatch if their sizes do not agree."""
    check_layer(layer, delta)
    bias = delta.bias_change(layer.bias, 1.0, lora_alpha)
    if not delta.linear:
        return Bent(layer, delta, lora_alpha)
    if bias is not None and not {"diff", "weight"} & delta.tensors.keys() and delta.algorithm in PLAIN:
        return Shift(bias, isinstance(layer, (nn.Conv2d, nn.GroupNorm)))
    if delta.algorithm != "lora" or delta.tensors.keys() != {"down", "up"}:
        return DenseDelta(layer, delta, lora_alpha)
    with torch.device("meta"):
        low = LoraLayer(layer, delta.tensors["down"].shape[0], delta.alpha)
    low.scale = delta.scale(lora_alpha)
    for name in ("down", "up"):
        tensor = delta.tensors[name].reshape(getattr(low, name).shape)
        setattr(low, name, nn.Parameter(tensor, requires_grad=False))
    return low


def _shape(layer: nn.Module, delta: LayerDelta) -> tuple[int, ...]:
    """The shape of the weight that is changed; Mismatch for layers that have none or are of another kind."""
    if isinstance(layer, NORMS) and delta.algorithm in PLAIN:
        if layer.weight is None or any(t.squeeze().ndim > 1 for t in delta.tensors.values()):
            raise Mismatch(f"a {type(layer).__name__} cannot be adapted by a change of a matrix")
        return tuple(layer.weight.shape)
    inputs, outputs, kernel = _sizes(layer)
    return (outputs, inputs, *kernel)


def _sizes(layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """Inputs, outputs and kernel of a layer that can be adapted."""
    layer = getattr(layer, "base_layer", layer)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.in_channels, layer.out_channels, layer.kernel_size
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, ()
    raise Mismatch(f"a {type(layer).__name__} cannot be adapted: only Linear and Conv2d layers can")


PLAIN = ("norm", "full", "whole")
"""Algorithms that hold the change itself, of the weight or only of the bias."""

NORMS = (nn.LayerNorm, nn.GroupNorm)
"""Layers whose weight is one number for each channel: they take differences of it."""


def _applied(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer would give with these in place of its own weight and bias."""
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    if isinstance(layer, nn.Conv2d):
        return _convolved(layer, x, weight, bias)
    return F.linear(x, weight, bias)


def _convolved(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
