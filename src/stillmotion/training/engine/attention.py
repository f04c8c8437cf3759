"""Attention that trains fast in bf16 on a CPU: the same function, other kernels.

torch's fused CPU attention is slow in a bf16 backward pass: half the time of a whole training step (128 to
384 channels, 16x16 latents, 16 frames: 3.8 s, with this 2.1 s; one core, torch 2.13). Here few tokens go
through two plain matrix products, many through the fused kernel in fp32. The softmax is fp32 in both, as in
the fused one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW = 5000
"""queries times keys up to which plain products are faster (16 x 16 frames, 64 x 77 words)"""


@contextmanager
def trainable_attention(device: torch.device) -> Iterator[None]:
    """Within it scaled_dot_product_attention on bf16 tensors of the CPU is `attend`; elsewhere as ever."""
    if device.type != "cpu":
        yield
        return
    with _Replaced():
        yield


class _Replaced(TorchFunctionMode):
    """Belongs to one thread and one `with`; nothing is patched."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            attended = _plain(*args, **kwargs)
            if attended is not None:
                return attended
        return func(*args, **kwargs)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """`attend` for plain attention in bf16; None for what stays with torch: masks, dropout, other dtypes."""
    if query.dtype != torch.bfloat16 or attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return None
    return attend(query, key, value, scale)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """(..., queries, d), (..., keys, d) twice -> (..., queries, d)."""
    if query.shape[-2] * key.shape[-2] > FEW:
        wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale)
        return wide.to(query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax((query * scale) @ key.transpose(-1, -2), -1, dtype=torch.float32)
    return weights.to(value.dtype) @ value
