"""Which frames of a clip make a training sample. Indices only.

frames 4, stride 3, clip of 12      start in 0..2     0..3..6..9
the same with loop                  start in 0..11   10..1..4..7     (the clip is taken as closed)
whole                               evenly over the clip, whatever its length
"""

from __future__ import annotations

from typing import Literal

Span = Literal["stride", "whole"]


def frames_needed(frames: int, stride: float) -> int:
    """Length in frames of the stretch that a sample covers: `frames` images, `stride` apart."""
    return round((frames - 1) * stride) + 1


def min_length(frames: int, stride: float, loop: bool = False, span: Span = "stride") -> int:
    """Frames that a clip must have to be used (a looping clip is long enough once it has two)."""
    if loop:
        return 2
    return frames if span == "whole" else frames_needed(frames, stride)


def frame_indices(
    total: int, frames: int, stride: float, u: float, loop: bool = False, span: Span = "stride"
) -> list[int]:
    """Indices of `frames` images of a clip of `total`; `u` in [0, 1) chooses the start.

    The paper's clips are 16 frames at stride 4. With `loop` indices wrap around. `span="whole"` spreads the
    images over the whole clip: a closed one is cut into equal steps from any start, an open one runs from
    its first to its last frame.
    """
    if total < min_length(frames, stride, loop, span):
        raise ValueError(f"a clip of {total} frames is too short for {frames} at stride {stride:g}")
    if loop:
        step = total / frames if span == "whole" else stride
        start = int(u * total)
        return [(start + round(k * step)) % total for k in range(frames)]
    if span == "whole":
        return [round(k * (total - 1) / max(frames - 1, 1)) for k in range(frames)]
    start = int(u * (total - frames_needed(frames, stride) + 1))
    return [start + round(k * stride) for k in range(frames)]
