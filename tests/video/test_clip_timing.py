"""Ticks and rates: rounding never adds up, and a steady rate comes back from what was stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.video.timing import at_rate, constant_rate, delays

counts = st.integers(1, 200)


@given(counts, st.floats(1, 50), st.sampled_from([1, 10]))
def test_delays_are_whole_ticks_whose_sum_is_the_duration(frames, fps, tick):
    durations_ms = delays(frames, fps, tick)
    assert len(durations_ms) == frames and all(
        duration_ms > 0 and duration_ms % tick == 0 for duration_ms in durations_ms
    )
    assert abs(sum(durations_ms) - frames * 1000 / fps) <= tick / 2 + 1e-6


@given(counts, st.floats(1, 33), st.sampled_from([1, 10]))
def test_a_steady_rate_is_found_again_from_its_delays(frames, fps, tick):
    found, shown = constant_rate(delays(frames, fps, tick), tick)
    assert shown.tolist() == list(range(frames))
    assert frames / found == pytest.approx(frames / fps, abs=tick / 2000 + 1e-9)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(1, 50), st.sampled_from([1, 10]))
def test_merged_neighbours_come_apart_again(values, fps, tick):
    durations_ms, merged = [], []
    for value, duration_ms in zip(values, delays(len(values), fps, tick), strict=True):
        if merged and merged[-1] == value:
            durations_ms[-1] += duration_ms
        else:
            merged.append(value)
            durations_ms.append(duration_ms)
    shown = at_rate(durations_ms, fps, len(values))
    assert [merged[index] for index in shown] == values


def test_a_long_hold_becomes_repeats_and_a_glitch_stays_one_frame():
    fps, shown = constant_rate([40, 40, 1, 40, 400], 1)
    assert shown.tolist() == [0, 1, 2, 3, *[4] * 10]
    assert fps == pytest.approx(14 / 0.521)
    fps, shown = constant_rate([20, 30, 20, 30, 500], 10)  # 40 fps in hundredths, and a hold
    assert shown.tolist() == [0, 1, 2, 3, *[4] * 20] and fps == pytest.approx(40)


def test_stills_have_a_rate_too():
    fps, shown = constant_rate([0.0], 1)
    assert fps == 1.0 and shown.tolist() == [0]


def test_a_file_that_somebody_made_faster_is_not_read_at_its_old_rate():
    assert at_rate([50] * 16, 8.0, 16) is None
    assert np.array_equal(at_rate([125] * 16, 8.0, 16), np.arange(16))
