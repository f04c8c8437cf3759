"""When each frame is shown: whole ticks for writers, a steady rate for readers. Numbers only.

Animated images store how long each image stands, in whole ticks (GIF 10 ms, WebP and APNG 1 ms), and
their encoders merge equal neighbours into one image that stands longer. A clip has a steady rate; these
functions go from one to the other without losing a frame or letting the rounding add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST_FRAMES = 10**6
"""Of a clip whose images stand for different times."""
LEAST_STEP = 1000 / 60
"""ms; faster steady rates are high-speed cameras, faster uneven ones are bursts"""


def delays(frames: int, fps: float, tick: int) -> list[int]:
    """Milliseconds that each frame stands, as multiples of `tick` ms; their sum is right to half a tick."""
    ends = [round(frame * 1000 / (fps * tick)) for frame in range(frames + 1)]
    return [(end - start) * tick for start, end in zip(ends, ends[1:], strict=False)]


def constant_rate(durations_ms: Sequence[float], tick: float) -> tuple[float, np.ndarray]:
    """The steady rate in images that stand for `durations_ms` ms, and which image each frame of it shows.

    The commonest delay (with what rounding to `tick` ms makes of it) is one frame; an image that stands
    longer is shown for several. Total duration is kept: fps = frames / duration. A lone still has 1 fps.
    Uneven images of which most are shorter than 1/60 s get the delay in the middle of the duration.
    """
    total = sum(durations_ms)
    if total <= 0:
        return 1.0, np.arange(len(durations_ms))
    commonest = Counter(duration_ms for duration_ms in durations_ms if duration_ms > 0).most_common(1)[0][0]
    step = np.mean(
        [
            duration_ms
            for duration_ms in durations_ms
            if abs(duration_ms - commonest) <= tick and duration_ms > 0
        ]
    )
    counts = [max(1, round(duration_ms / step)) for duration_ms in durations_ms]
    if sum(counts) > MOST_FRAMES:  # one image stands for hours: a few bytes would become gigabytes
        counts = [1] * len(durations_ms)
    elif step < LEAST_STEP and sum(counts) > len(durations_ms):  # a burst is no rate
        order = np.argsort(durations_ms)
        middle = durations_ms[order[np.searchsorted(np.cumsum(np.asarray(durations_ms)[order]), total / 2)]]
        frames = max(1, round(total / max(LEAST_STEP, middle)))
        if (shown := at_rate(durations_ms, frames * 1000 / total, frames)) is not None:
            return frames * 1000 / total, shown
    shown = np.repeat(np.arange(len(durations_ms)), counts)
    return len(shown) * 1000 / total, shown


def at_rate(durations_ms: Sequence[float], fps: float, frames: int) -> np.ndarray | None:
    """Which image is on screen in the middle of each of `frames` frames at `fps`.

    None if the images last noticeably longer or shorter than that (some other program changed the file).
    """
    ends = np.cumsum(durations_ms)
    if abs(ends[-1] - frames * 1000 / fps) > 20 + 0.02 * ends[-1]:
        return None
    middles = (np.arange(frames) + 0.5) * 1000 / fps
    return np.minimum(np.searchsorted(ends, middles, side="right"), len(durations_ms) - 1)
