"""Training: one loop over a target, which the kind of the config chooses. `train(config)` is the entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from stillmotion.training.config import MotionTrainConfig, TrainConfig, load_config

if TYPE_CHECKING:
    from stillmotion.training.journal import Step
    from stillmotion.training.loop import Outcome

__all__ = ["KINDS", "MotionTrainConfig", "TrainConfig", "load_config", "train", "train_motion"]


@dataclass(frozen=True)
class Kind:
    """One thing that can be trained: its config, its target ("module:Class" in targets/), its help."""

    config: type[TrainConfig]
    target: str
    help: str


KINDS = {
    "motion": Kind(
        MotionTrainConfig,
        "motion:MotionTarget",
        """Train a motion module on clips with captions.

        The text-to-image model stays frozen. The weights end in OUTPUT/motion, which `stillmotion animate
        --motion` and diffusers' MotionAdapter load. Kill it whenever you like: the same command goes on where
        it was. With --motion FILE it goes on from weights you have, to bring them to videos of your kind.
        """,
    ),
}
"""Name of the command -> what it trains."""


def train(config: TrainConfig, on_step: Callable[[Step], None] | None = None) -> Outcome:
    """Trains what the config describes into `config.output`, or goes on with the run that is there.

    Raises DataError (nothing usable), TrainingError (a run gone wrong), WeightsError (base or other weights).
    """
    from stillmotion.training.loop import run

    module, _, name = next(k.target for k in KINDS.values() if type(config) is k.config).partition(":")
    target = getattr(import_module(f"stillmotion.training.targets.{module}"), name)
    return run(config, target, on_step)


def train_motion(config: MotionTrainConfig, on_step: Callable[[Step], None] | None = None) -> Outcome:
    """`train` for a motion module: weights into `config.output`/motion."""
    return train(config, on_step)
