from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from stillmotion.training.engine.checkpoint import checkpoints
from stillmotion.training.engine.logger import Step, read_losses
from stillmotion.training.engine.loss_plot import BLUE, GREY, plot_losses, running_mean


def test_the_mean_is_of_the_last_values():
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert running_mean(values, 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert running_mean(values, 100).tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("count", [1, 2, 300, 9000])
def test_a_plot_has_both_lines_and_falls_where_the_loss_does(tmp_path, count):
    plot_losses(
        [Step(n + 1, 1 / (n + 2) + 0.1 * (n % 2), 0.1, 1.0) for n in range(count)], tmp_path / "loss.png"
    )
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))
    blue = np.argwhere((pixels == BLUE).all(-1))
    assert len(blue)
    if count >= 300:
        assert (pixels == GREY).all(-1).any()
        assert blue[blue[:, 1].argmin(), 0] < blue[blue[:, 1].argmax(), 0], "down is further below"


def test_equal_losses_and_none(tmp_path):
    plot_losses([Step(n, 0.5, 0.1, 1.0) for n in range(1, 20)], tmp_path / "equal.png")
    plot_losses([], tmp_path / "none.png")
    assert (tmp_path / "equal.png").exists() and not (tmp_path / "none.png").exists()


def test_what_is_no_file_of_losses_has_none(tmp_path):
    os.mkfifo(tmp_path / "loss.csv")
    assert read_losses(tmp_path / "loss.csv") == []


def test_only_numbered_folders_are_checkpoints(tmp_path):
    for name in ("step-00000002", "step-10", "step-²", "step-x", "step-" + "9" * 30):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-10"]
