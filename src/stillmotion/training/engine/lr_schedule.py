"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, peak: float, schedule: str, warmup: int, steps: int, end: float) -> float:
    """Rate of step `step` (0-based): linear rise over `warmup`, then constant or cosine to `end` x `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    part = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (end + (1 - end) * (1 + math.cos(math.pi * part)) / 2)
