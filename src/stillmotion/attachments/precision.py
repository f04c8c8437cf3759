"""A UNet in low precision under a float32 sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.attachments.base import Attachment, Handle, unet_of


class PrecisionAttachment(Attachment):
    """A UNet takes float32 and gives float32, whatever it computes in.

    A sampler adds up dozens of small steps; latents kept in bf16 (8 bits) between them would lose what the
    later steps add.
    """

    def network_of(self, target: Any) -> nn.Module:
        """Any network: it goes around the whole, so a compiled one will do."""
        return unet_of(target)

    def on_attach(self, unet: nn.Module) -> Iterator[Handle]:
        """One hook before the network and one after it."""
        yield unet.register_forward_pre_hook(self._before, with_kwargs=True)
        yield unet.register_forward_hook(self._after)

    def _before(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        dtype = next(unet.parameters()).dtype
        return tuple(_cast(arg, dtype) for arg in args), _cast(kwargs, dtype)

    def _after(self, unet: nn.Module, args: Any, output: Any) -> Any:
        return _cast(output, torch.float32)


def float32_outside(target: Any) -> PrecisionAttachment:
    """Put a `PrecisionAttachment` on a UNet or a pipeline's: `with float32_outside(...):`."""
    return PrecisionAttachment().attach(target)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in nested tuples and dicts as `dtype`; timesteps and everything else as they are."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if isinstance(value, dict):  # diffusers' outputs are dicts too
        return type(value)(**{key: _cast(item, dtype) for key, item in value.items()})
    return value
