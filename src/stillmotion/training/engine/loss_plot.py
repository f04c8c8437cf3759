"""The losses of a run as an image: every step in grey, a running mean above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stillmotion.atomic import durable
from stillmotion.training.engine.logger import Step

SIZE = (900, 420)
MARGINS = (70, 30, 20, 40)
"""pixels left, above, right and below"""
GREY, BLUE, INK = (200, 200, 200), (30, 90, 200), (60, 60, 60)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place (n,), of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def plot_losses(rows: Sequence[Step], path: Path) -> None:
    """Writes a PNG with steps along and losses up; nothing without rows.

    The mean is over a fiftieth of the run, at least 10 steps. The axis ends at the 99th percentile, so that
    one leap does not press the rest flat.
    """
    if not rows:
        return
    steps, losses = np.array([row.step for row in rows]), np.array([row.loss for row in rows])
    window = max(10, len(rows) // 50)
    means = running_mean(losses, window)
    low = min(float(losses.min()), float(means.min()))
    high = max(float(np.percentile(losses, 99)), float(means[-1]))
    high = high if high > low else low + max(abs(low), 1e-6)
    left, top, right, bottom = MARGINS[0], MARGINS[1], SIZE[0] - MARGINS[2], SIZE[1] - MARGINS[3]
    span = max(1, int(steps[-1] - steps[0]))
    across = left + (steps - steps[0]) / span * (right - left)

    def up(values: np.ndarray) -> np.ndarray:
        return bottom - (np.clip(values, low, high) - low) / (high - low) * (bottom - top)

    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    every = max(1, math.ceil(len(rows) / 4000))
    for values, colour, width in ((losses, GREY, 1), (means, BLUE, 2)):
        points = list(zip(across[::every].tolist(), up(values)[::every].tolist(), strict=True))
        draw.line(points, fill=colour, width=width)
        (x, y), r = points[-1], width
        draw.ellipse([(x - r, y - r), (x + r, y + r)], fill=colour)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    for value, height in ((high, top), ((low + high) / 2, (top + bottom) / 2), (low, bottom)):
        draw.text((left - 8, height), f"{value:.4g}", fill=INK, font=font, anchor="rm")
    for step, place in ((steps[0], left), (steps[-1], right)):
        draw.text((place, bottom + 14), str(step), fill=INK, font=font, anchor="mm")
    title = f"loss; mean of {window} steps: {means[-1]:.4g} at step {steps[-1]}"
    draw.text(((left + right) / 2, 14), title, fill=INK, font=font, anchor="mm")
    with durable(path) as unfinished:
        image.save(unfinished, format="PNG")
