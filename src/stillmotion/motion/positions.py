"""Where a frame stands in its clip: the sinusoidal table of the Transformer paper, or one stored in a file.

The table is a pure function of position: any length can be made again and none is kept in a state_dict. Only
a fine-tune that stored an altered table keeps it (docs/formats.md 1; the original and diffusers drop it).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""how far a stored table of this dtype may be from the formula by rounding alone; 1e-4 for all others"""


def sinusoid(
    frames: int,
    channels: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(frames, channels): sin(p*w) in column c, cos(p*w) in c + 1, for even c, w = 10000^(-c/channels)."""
    position = torch.arange(frames, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(
        torch.arange(0, channels, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / channels)
    )
    table = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1)
    return table.flatten(1)[:, :channels].to(dtype)


@lru_cache(maxsize=64)
def _kept(frames: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return sinusoid(frames, channels, dtype, device)


def follows_formula(table: Tensor) -> bool:
    """Whether a stored table (1, length, channels) is the formula, up to the rounding of its dtype."""
    if table.ndim != 3 or len(table) != 1:
        return False
    expected = sinusoid(table.shape[-2], table.shape[-1], device=table.device)
    return torch.allclose(table.float().squeeze(0), expected, rtol=0, atol=TOLERANCE.get(table.dtype, 1e-4))


class Positions(nn.Module):
    """Adds to each frame its place in the clip; in the state_dict only if an altered table was loaded."""

    pe: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pe", None)

    def table(self, frames: int, like: Tensor) -> Tensor:
        """The first `frames` rows (frames, channels) in the dtype and on the device of `like`."""
        if self.pe is not None:
            return self.pe[0, :frames].to(like)
        plain = type(like) is Tensor and not torch.compiler.is_compiling()  # a fake tensor must not be kept
        make = _kept if plain else sinusoid
        return make(frames, like.shape[-1], like.dtype, like.device)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(b f) n c -> the same, with the place of each frame added."""
        table = self.table(frames, like=x)
        return (x.unflatten(0, (-1, frames)) + table[:, None]).flatten(0, 1)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """A table equal to the formula is dropped, any other becomes the buffer."""
        stored = state.get(f"{prefix}pe")
        self.pe = None if stored is None or follows_formula(stored) else stored.detach().clone()
