"""Detects what usually goes wrong in training, from numbers alone, and reports each thing once.

What is trained starts as the identity (zero proj_out, zero up), so the first losses are those of the base
alone: the yardstick for everything after.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

from torch import Tensor

from stillmotion.errors import TrainingError

WINDOW = 50
COLLAPSED = 0.1
WORSE = 1.5
JUMP = 0.05
HIGH = 20
"""times the usual learning rate: below it short runs and small LoRAs often go well"""
CRAWL = 1e-7


class Diagnostics:
    """Fed with every step; gives back sentences worth saying now. `usual`: the learning rate of its kind."""

    def __init__(self, usual: float = 1e-4) -> None:
        self.usual = usual
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.flat = 0
        self.slow = 0
        self.output: set[str] = set()

    def update(self, loss: float, spread: float, moved: float, rate: float) -> list[str]:
        """`spread`: prediction's deviation over its target's; `moved`: |change| / |weights| of one step."""
        if len(self.first) < WINDOW:
            self.first.append(loss)
        self.recent.append(loss)
        self.flat = self.flat + 1 if spread < COLLAPSED else 0
        self.slow = self.slow + 1 if moved < CRAWL else 0
        found = {
            "collapsed": self.flat >= 20
            and f"The prediction has hardly varied for long ({spread:.1%} of what it should): it "
            "has collapsed to a constant. Start again from an earlier checkpoint with a lower learning rate.",
            "worse": self._worse()
            and f"The loss ({mean(self.recent):.4f}) is far above that of the start ({mean(self.first):.4f}),"
            f" which was that of the base alone: the learning rate {rate:g} is probably too high.",
            "jump": moved > JUMP
            and rate > HIGH * self.usual
            and f"One step changed the weights by {moved:.1%}: the learning rate {rate:g} is probably too "
            f"high ({self.usual:g} is usual), or the warm-up too short.",
            "slow": self.slow >= 200
            and f"The weights hardly change: the learning rate {rate:g} is too low ({self.usual:g} usual).",
        }
        new = [name for name, sentence in found.items() if sentence and name not in self.output]
        self.output.update(new)
        return [str(found[name]) for name in new]

    def _worse(self) -> bool:
        full = len(self.first) == WINDOW and len(self.recent) == WINDOW
        return full and mean(self.recent) > WORSE * mean(self.first)


def refuse_nonfinite(loss: float, grad_norm: float, step: int, checkpoint: Path | None) -> None:
    """TrainingError when the step cannot be taken; weights and checkpoints are still good then."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
    raise _nonfinite(what, step, checkpoint)


def refuse_nonfinite_weights(weights: Tensor, step: int, checkpoint: Path | None) -> None:
    """TrainingError when weights (any shape) hold nan or inf: they never become a checkpoint."""
    count = int((~weights.isfinite()).sum())
    if count:
        raise _nonfinite(f"{count} of {weights.numel()} weights are nan or inf", step, checkpoint)


def _nonfinite(what: str, step: int, checkpoint: Path | None) -> TrainingError:
    good = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
    return TrainingError(
        f"At step {step} {what}, so the run has stopped. {good}; start the same command with a lower "
        "learning_rate, a longer lr_warmup_steps, or precision fp32."
    )


def rate_notice(rate: float, usual: float = 1e-4) -> str | None:
    """A sentence when a learning rate is far from what usually trains such weights with AdamW."""
    if usual / 100 <= rate <= HIGH * usual:
        return None
    side = "high: the weights may run away" if rate > usual else "low: hardly anything will be learnt"
    return f"learning_rate {rate:g} is very {side} ({usual:g} is usual)."


def mean(values: deque[float] | list[float]) -> float:
    return sum(values) / len(values)
