"""A UNet in low precision under a float32 sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def float32_outside(model: nn.Module) -> Iterator[None]:
    """The model takes float32 and gives float32 for one block, whatever it computes in.

    A sampler adds up dozens of small steps; latents kept in bf16 (8 bits) between them would lose what the
    later steps add. The hooks come off again, also after an exception.
    """
    dtype = next(model.parameters()).dtype

    def lower(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(_cast(arg, dtype) for arg in args), _cast(kwargs, dtype)

    def raise_(_: nn.Module, args: Any, output: Any) -> Any:
        return _cast(output, torch.float32)

    handles = [
        model.register_forward_pre_hook(lower, with_kwargs=True),
        model.register_forward_hook(raise_),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in nested tuples and dicts as `dtype`; timesteps and everything else as they are."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if isinstance(value, dict):  # diffusers' outputs are dicts too
        return type(value)(**{key: _cast(item, dtype) for key, item in value.items()})
    return value
