from __future__ import annotations

import math

import pytest

from stillmotion.errors import TrainingError
from stillmotion.training.engine.diagnostics import Diagnostics, rate_notice, refuse_nonfinite


def words(rows):
    diagnostics = Diagnostics()
    return [sentence for row in rows for sentence in diagnostics.update(*row)]


def test_a_healthy_run_is_left_alone():
    assert words([(0.3 - step * 1e-4, 0.9, 3e-3, 1e-4) for step in range(500)]) == []


def test_collapse_is_said_once():
    reported = words([(0.3, 0.9, 1e-3, 1e-4)] * 60 + [(0.9, 0.01, 1e-3, 1e-4)] * 40)
    assert sum("collapsed" in sentence for sentence in reported) == 1


def test_short_dips_are_no_collapse():
    assert words([(0.3, 0.01 if step % 10 else 0.5, 1e-3, 1e-4) for step in range(200)]) == []


def test_a_loss_far_above_the_base_and_great_leaps_mean_a_high_rate():
    (worse,) = words([(0.1, 0.9, 1e-3, 1e-2)] * 60 + [(0.4, 0.9, 1e-3, 1e-2)] * 60)
    assert "0.01 is probably too high" in worse and "0.1000" in worse
    (leap,) = words([(0.1, 0.9, 0.2, 1e-2)] * 3)
    assert "20.0%" in leap


def test_standing_still_means_a_low_rate():
    (slow,) = words([(0.1, 0.9, 1e-9, 1e-9)] * 300)
    assert "too low" in slow


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.inf)])
def test_nonfinite_stops_and_names_the_last_good_checkpoint(loss, norm):
    with pytest.raises(TrainingError, match=r"step 12 .*step-00000010"):
        refuse_nonfinite(loss, norm, 12, "run/checkpoints/step-00000010")
    refuse_nonfinite(0.1, 1.0, 12, None)


def test_rates_far_off_are_noticed_before_the_start():
    assert rate_notice(1e-4) is None and rate_notice(1e-3) is None
    assert "high" in rate_notice(0.1) and "low" in rate_notice(1e-8)
