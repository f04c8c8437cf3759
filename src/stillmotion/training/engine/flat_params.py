"""All trained weights as one fp32 vector: master weights, gradients, optimizer and EMA are single tensors.

The network keeps its own parameters in the precision of the computation; after a step they are copies of the
master. One vector makes clipping, EMA, checkpoints and the sum over processes one operation each, and makes
fp32 optimizer state a fact instead of a hope. The parameters are given by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter


class FlatParameters:
    """`weights` and `grad` (size,) fp32 for named working parameters."""

    def __init__(self, parameters: Mapping[str, Parameter], dtype: torch.dtype = torch.float32) -> None:
        """Takes the fp32 values of the parameters, then turns the parameters into `dtype`."""
        self.parameters = dict(parameters)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.sizes = [parameter.numel() for parameter in self.parameters.values()]
        flat = [parameter.detach().float().flatten() for parameter in self.parameters.values()]
        self.weights = torch.cat(flat)
        self.grad = torch.zeros_like(self.weights)
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)

    def accumulate_grads(self, weight: float) -> None:
        """Adds `weight` times the parameters' gradients to `grad` and clears them."""
        for part, parameter in zip(self._parts(self.grad), self.parameters.values(), strict=True):
            if parameter.grad is not None:
                part.add_(parameter.grad.flatten(), alpha=weight)
                parameter.grad = None

    @torch.no_grad()
    def copy_to_model(self, weights: Tensor | None = None) -> None:
        """Copies `weights` (default: the master) into the working parameters, rounded to their precision."""
        source = self._parts(self.weights if weights is None else weights)
        for part, parameter in zip(source, self.parameters.values(), strict=True):
            parameter.copy_(part.view(parameter.shape))

    def named(self, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Views by name into `weights` (default: the master)."""
        parts = self._parts(self.weights if weights is None else weights)
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _parts(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split(self.sizes)
