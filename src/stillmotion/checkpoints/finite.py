"""Weights must be finite: one nan makes every pixel of a clip black."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stillmotion.errors import Damaged

if TYPE_CHECKING:
    from torch import Tensor


def check_finite(tensors: Mapping[str, Tensor], file: str) -> None:
    """Damaged with the file and its first layer that holds nan or inf; complex and whole numbers pass."""
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise Damaged(
            f"{file} holds values that are not finite (nan or inf) in {bad[0]}{more}: its training ran away "
            "or the file is damaged, and every frame would be black. Use another file."
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is nan or inf: `aminmax` hands nan on, and is 40 times as fast as isfinite."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.device.type == "meta":
        return True
    if tensor.element_size() == 1:  # float8 has no arithmetic
        tensor = tensor.float()
    return all(bool(end.isfinite()) for end in tensor.aminmax())
