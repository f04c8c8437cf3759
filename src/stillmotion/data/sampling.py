"""Which frames of a clip make a training sample. Numbers only: knows no files and no tensors.

frames 4, stride 3, clip of 12      start in 0..2     0..3..6..9
the same with loop                  start in 0..11   10..1..4..7     (the clip is taken as closed)
whole                               evenly over the clip, whatever its length
"""

from __future__ import annotations

from typing import Literal

Span = Literal["stride", "whole"]


def needed(frames: int, stride: float) -> int:
    """Length in frames of the stretch that a sample covers: `frames` pictures, `stride` apart."""
    return round((frames - 1) * stride) + 1


def least(frames: int, stride: float, loop: bool = False, span: Span = "stride") -> int:
    """Frames that a clip must have to be used (a looping clip is long enough once it has two)."""
    if loop:
        return 2
    return frames if span == "whole" else needed(frames, stride)


def frame_indices(
    total: int, frames: int, stride: float, u: float, loop: bool = False, span: Span = "stride"
) -> list[int]:
    """Indices of `frames` pictures of a clip of `total`; `u` in [0, 1) chooses the start.

    The paper's clips are 16 frames at stride 4. With `loop` indices wrap around. `span="whole"` spreads the
    pictures over the whole clip: a closed one is cut into equal steps from any start, an open one runs from
    its first to its last frame.
    """
    if total < least(frames, stride, loop, span):
        raise ValueError(f"a clip of {total} frames is too short for {frames} at stride {stride:g}")
    if loop:
        step = total / frames if span == "whole" else stride
        start = int(u * total)
        return [(start + round(k * step)) % total for k in range(frames)]
    if span == "whole":
        return [round(k * (total - 1) / max(frames - 1, 1)) for k in range(frames)]
    start = int(u * (total - needed(frames, stride) + 1))
    return [start + round(k * stride) for k in range(frames)]
