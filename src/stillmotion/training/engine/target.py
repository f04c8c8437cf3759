"""What can be trained: each target says which weights, which loss, which file comes out and how it looks.

The loop (loop.py) knows this protocol and nothing of diffusion; a target knows nothing of optimizers,
checkpoints or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stillmotion.training.config import TrainConfig
    from stillmotion.training.engine.rng import SampleRng


@dataclass
class Loss:
    """The loss of one pass, and what the diagnostics need."""

    value: Tensor
    """scalar with gradient: the mean over the samples"""
    spread: Tensor
    """scalar: standard deviation of the prediction relative to that of its target; 0 = a constant"""


class Target(Protocol):
    """Loads its models and prepares its data when it is made; `log` speaks to the user."""

    artifact: str
    """file or folder in the run's folder that the user takes away"""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, log: Callable[[str], None]) -> None: ...

    def data_key(self) -> str:
        """Names the training data: when it changes between two starts, the order of samples does too."""

    def parameters(self) -> Mapping[str, Parameter]:
        """The weights that train, in fp32, by the name they have in files."""

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """One pass over one sample per draw."""

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """Writes `artifact` from weights by name, atomically."""

    def samples(self, folder: Path, step: int) -> Path | None:
        """Draws sample clips with the present weights; the path of their sheet, or None without any."""
