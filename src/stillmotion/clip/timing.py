"""When each frame is shown: whole ticks for writers, a steady rate for readers. Numbers only.

Animated pictures store how long each picture stands, in whole ticks (GIF 10 ms, WebP and APNG 1 ms), and
their encoders merge equal neighbours into one picture that stands longer. A clip has a steady rate; these
functions go from one to the other without losing a frame or letting the rounding add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST_FRAMES = 10**6
"""Of a clip whose pictures stand for different times."""
LEAST_STEP = 1000 / 60
"""ms; faster steady rates are high-speed cameras, faster uneven ones are bursts"""


def delays(frames: int, fps: float, tick: int) -> list[int]:
    """Milliseconds that each frame stands, as multiples of `tick` ms; their sum is right to half a tick."""
    ends = [round(frame * 1000 / (fps * tick)) for frame in range(frames + 1)]
    return [(end - start) * tick for start, end in zip(ends, ends[1:], strict=False)]


def steady(stands: Sequence[float], tick: float) -> tuple[float, np.ndarray]:
    """The steady rate in pictures that stand for `stands` ms, and which picture each frame of it shows.

    The commonest delay (with what rounding to `tick` ms makes of it) is one frame; a picture that stands
    longer is shown for several. Total duration is kept: fps = frames / duration. A lone still has 1 fps.
    Uneven pictures of which most are shorter than 1/60 s get the delay in the middle of the duration.
    """
    total = sum(stands)
    if total <= 0:
        return 1.0, np.arange(len(stands))
    commonest = Counter(stand for stand in stands if stand > 0).most_common(1)[0][0]
    step = np.mean([stand for stand in stands if abs(stand - commonest) <= tick and stand > 0])
    counts = [max(1, round(stand / step)) for stand in stands]
    if sum(counts) > MOST_FRAMES:  # one picture stands for hours: a few bytes would become gigabytes
        counts = [1] * len(stands)
    elif step < LEAST_STEP and sum(counts) > len(stands):  # a burst is no rate
        order = np.argsort(stands)
        middle = stands[order[np.searchsorted(np.cumsum(np.asarray(stands)[order]), total / 2)]]
        frames = max(1, round(total / max(LEAST_STEP, middle)))
        if (shown := at_rate(stands, frames * 1000 / total, frames)) is not None:
            return frames * 1000 / total, shown
    shown = np.repeat(np.arange(len(stands)), counts)
    return len(shown) * 1000 / total, shown


def at_rate(stands: Sequence[float], fps: float, frames: int) -> np.ndarray | None:
    """Which picture is on screen in the middle of each of `frames` frames at `fps`.

    None if the pictures last noticeably longer or shorter than that (some other program changed the file).
    """
    ends = np.cumsum(stands)
    if abs(ends[-1] - frames * 1000 / fps) > 20 + 0.02 * ends[-1]:
        return None
    middles = (np.arange(frames) + 0.5) * 1000 / fps
    return np.minimum(np.searchsorted(ends, middles, side="right"), len(stands) - 1)
