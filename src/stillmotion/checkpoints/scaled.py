"""Weights stored as 8-bit floats with a scale beside them: what they stand for is both multiplied.

    layer.weight (float8)   layer.scale_weight          ComfyUI
                            layer.weight_scale          newer ComfyUI, compressed-tensors
                            layer.weight_scale_inv      DeepSeek's blocks (named so, but multiplied too)
                            layer.weight_scale_2        a second scale, of the first

A scale is one number, one for each row (output channel), or one for each block of rows and columns. Scales of
activations (`scale_input`, `input_scale`) and marks (`scaled_fp8`) belong to kernels in 8 bits and are left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from stillmotion.errors import Damaged, WeightsError

_SCALE = re.compile(
    r"(.*?)\.(?:weight[._])?(?:scale_weight|weight_scale|weight_scale_inv|scale_inv|_?scale)(?:_2)?"
)
"""Name of a scale; the layer that it is of comes first."""

_PACKED = (
    ".absmax",
    ".quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
    ".SCB",
)
"""Ends of what bitsandbytes keeps beside weights of 4 and 8 bits."""

_BLOCK = 128
"""Rows and columns of a block, in all that is published so."""


def dequantized(state: Mapping[str, Tensor], dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """The tensors with every float8 weight times its scale in `dtype`; without scales as they are.

    One tensor at a time is computed in float32. Raises `WeightsError` for weights of 4 bits or of integers,
    which are not read, `Damaged` for a scale of another shape.
    """
    if any(key.endswith(_PACKED) for key in state):
        raise WeightsError(_unread(name, "by bitsandbytes"))
    scales = _scales(state)
    own = {key for keys in scales.values() for key in keys}
    plain = {key: tensor for key, tensor in state.items() if key not in own}
    for key, found in scales.items():
        if not plain[key].is_floating_point():
            raise WeightsError(_unread(name, f"to {str(plain[key].dtype).removeprefix('torch.')}"))
        value = plain[key].float()
        for scale in found:
            value = value * _spread(state[scale].float(), value, f"{key} in {name}")
        plain[key] = value.to(dtype)
    return plain


def _scales(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Each weight of 8 bits or fewer that has scales, and their names."""
    found: dict[str, list[str]] = {}
    for key in state:
        match = _SCALE.fullmatch(key)
        name = f"{match[1]}.weight" if match else ""
        if name in state and state[name].element_size() == 1:
            found.setdefault(name, []).append(key)
    return found


def _unread(name: str, how: str) -> str:
    return f"{name} is quantized {how}, which is not read. Use the fp8 or fp16 version of this model."


def _spread(scale: Tensor, weight: Tensor, name: str) -> Tensor:
    """A scale as a tensor that multiplies the weight: by number, row or block."""
    if scale.numel() == 1:
        return scale.reshape(())
    rows = weight.shape[0]
    if scale.numel() == rows and scale.shape[0] == rows:
        return scale.reshape(rows, *[1] * (weight.ndim - 1))
    if scale.ndim == weight.ndim == 2:
        blocks = [_block(size, count) for size, count in zip(weight.shape, scale.shape, strict=True)]
        if all(blocks):
            for axis, block in enumerate(blocks):
                scale = scale.repeat_interleave(block, axis).narrow(axis, 0, weight.shape[axis])
            return scale
    raise Damaged(f"The scale of {name} is {tuple(scale.shape)}, which does not fit {tuple(weight.shape)}.")


def _block(size: int, count: int) -> int:
    """Length of each of `count` blocks that cover `size`, of which the last may be shorter; 0 if none can."""
    lengths = (_BLOCK, size // max(count, 1), *(2**power for power in range(4, 13)))
    return next((length for length in lengths if length and -(-size // length) == count), 0)
