"""What two runs that should be the same must agree in, and runs that stop half-way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillmotion.training import TrainConfig, train
from stillmotion.training.engine.checkpoint import checkpoints
from stillmotion.training.engine.logger import Step, read_losses


class Interrupted(Exception):
    """What a test throws into a run."""


def state_of(output: Path) -> dict[str, torch.Tensor]:
    """Tensors of the newest checkpoint."""
    return load_file(checkpoints(output)[-1] / "state.safetensors")


def same_end(one: Path, other: Path, *artifacts: str) -> None:
    """Equal checkpoints, losses and products, bit for bit."""
    assert checkpoints(one)[-1].name == checkpoints(other)[-1].name
    files = [(state_of(one), state_of(other))]
    files += [(load_file(one / artifact), load_file(other / artifact)) for artifact in artifacts]
    for a, b in files:
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert read_losses(one / "loss.csv") == read_losses(other / "loss.csv")


def ends_the_same(make: Callable[[str], TrainConfig], step: int, *artifacts: str) -> None:
    """A run interrupted after `step` steps and started again ends as one that was not."""
    whole, broken = make("whole"), make("broken")
    train(whole)

    def interrupt(row: Step) -> None:
        if row.step == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(broken, interrupt)
    steps: list[Step] = []
    assert train(broken, steps.append).finished
    assert 1 <= steps[0].step <= step + 1
    same_end(whole.output, broken.output, *artifacts)


def sheet_size(rows: int, columns: int, side: int = 16) -> tuple[int, int]:
    """Width and height of a sample sheet: two lines of 18 pixels above, one above each row, gaps of 4."""
    return columns * (side + 4) - 4, 2 * 18 + rows * (18 + side + 4) - 4
