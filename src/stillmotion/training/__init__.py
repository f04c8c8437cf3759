"""Training: one loop over a target. `train_motion(MotionTrainConfig(...))` is the entry and imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stillmotion.training.config import MotionTrainConfig, TrainConfig, load_config

if TYPE_CHECKING:
    from stillmotion.training.journal import Step
    from stillmotion.training.loop import Outcome

__all__ = ["MotionTrainConfig", "TrainConfig", "load_config", "train_motion"]


def train_motion(config: MotionTrainConfig, on_step: Callable[[Step], None] | None = None) -> Outcome:
    """Trains a motion module into `config.output`/motion, or goes on with the run that is there.

    Raises DataError (no usable clip), TrainingError (a run gone wrong), WeightsError (base or motion).
    """
    from stillmotion.training.loop import run
    from stillmotion.training.targets.motion import MotionTarget

    return run(config, MotionTarget, on_step)
