"""What rides on one Linear or Conv2d: input -> what the adapter adds to the output."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillmotion.adapt.factors import Factors, Parity
from stillmotion.errors import Mismatch


class LowRank(nn.Module):
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


class Dense(nn.Module):
    """The change as a whole matrix: LoHa, LoKr, Tucker cores, DoRA, differences."""

    def __init__(self, layer: nn.Module, factors: Factors, parity: Parity) -> None:
        super().__init__()
        self.layer = (layer,)
        weight = layer.weight.detach().float()
        self.register_buffer("change", factors.merged(weight, 1.0, parity) - weight)
        self.register_buffer("bias", factors.bias)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer[0]
        if isinstance(layer, nn.Conv2d):
            return _convolved(layer, x, self.change, self.bias)
        return F.linear(x, self.change, self.bias)


def rider(layer: nn.Module, factors: Factors, parity: Parity = "kohya") -> LowRank | Dense:
    """The module that adds these factors to this layer; Mismatch if their sizes do not agree."""
    inputs, outputs, kernel = _sizes(layer)
    tensors = factors.tensors
    plain = factors.algorithm == "lora" and "mid" not in tensors and factors.magnitude is None
    if not plain:
        return Dense(layer, factors, parity)
    down, up = tensors["down"], tensors["up"]
    if (down.flatten(1).shape[1], up.shape[0]) != (inputs * _product(kernel), outputs):
        factors.delta((outputs, inputs, *kernel), parity)  # says in words what does not fit
        raise Mismatch(f"a change of {tuple(up.shape)} x {tuple(down.shape)} does not fit {layer}")
    with torch.device("meta"):
        low = LowRank(layer, down.shape[0], factors.alpha)
    low.scale = factors.scale(parity)
    low.down = nn.Parameter(down.reshape(low.down.shape), requires_grad=False)
    low.up = nn.Parameter(up.reshape(low.up.shape), requires_grad=False)
    return low


def _sizes(layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """Inputs, outputs and kernel of a layer that can be adapted."""
    layer = getattr(layer, "base_layer", layer)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.in_channels, layer.out_channels, layer.kernel_size
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, ()
    raise Mismatch(f"a {type(layer).__name__} cannot be adapted: only Linear and Conv2d layers can")


def _convolved(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def _product(kernel: tuple[int, ...]) -> int:
    return kernel[0] * kernel[1] if kernel else 1
