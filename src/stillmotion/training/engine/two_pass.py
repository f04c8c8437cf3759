"""Several passes of one network in different states under one loss: a LoRA with gradient or without.

A state must stay as it is until the backward pass is over, because gradient checkpointing computes the
forward pass again in it. So the backward pass of each is run at once, in its own state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


def backward_now(loss: Tensor, parameters: Iterable[Parameter]) -> Tensor:
    """A scalar of the same value and gradient, whose backward pass through the network is over."""
    if not loss.requires_grad:
        return loss
    training = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(loss, training, allow_unused=True)
    slopes = [((p - p.detach()) * g).sum() for p, g in zip(training, found, strict=True) if g is not None]
    return loss.detach() + sum(slopes)


@contextmanager
def frozen(parameters: Iterable[Parameter]) -> Iterator[None]:
    """These take part in the computation, but get no gradient of it."""
    kept = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in kept:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in kept:
            parameter.requires_grad_(True)
