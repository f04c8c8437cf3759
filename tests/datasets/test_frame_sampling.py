from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.datasets.frame_sampling import frame_indices, frames_needed, min_length

lengths = st.integers(2, 200)
counts = st.integers(2, 32)
strides = st.floats(0.5, 8)
starts = st.floats(0, 1, exclude_max=True)


@given(lengths, counts, strides, starts)
def test_open_clips_are_cut_in_order_and_inside(total, frames, stride, u):
    if total < frames_needed(frames, stride):
        with pytest.raises(ValueError, match="too short"):
            frame_indices(total, frames, stride, u)
        return
    indices = frame_indices(total, frames, stride, u)
    assert len(indices) == frames
    assert indices[0] >= 0 and indices[-1] < total
    assert indices[-1] - indices[0] == frames_needed(frames, stride) - 1
    assert indices == sorted(indices)


@given(lengths, counts, strides, starts)
def test_loops_go_on_over_the_end(total, frames, stride, u):
    indices = frame_indices(total, frames, stride, u, loop=True)
    offsets = [(index - indices[0]) % total for index in indices]
    assert offsets == [round(k * stride) % total for k in range(frames)]


def test_the_papers_rule():
    assert frames_needed(16, 4) == 61
    assert frame_indices(61, 16, 4, 0.999) == list(range(0, 61, 4))
    assert frame_indices(62, 16, 4, 0.999) == list(range(1, 62, 4))


def test_every_start_is_reached():
    starts = {frame_indices(12, 4, 3, u / 100)[0] for u in range(100)}
    assert starts == {0, 1, 2}
    assert {frame_indices(12, 4, 3, u / 100, loop=True)[0] for u in range(100)} == set(range(12))


def test_whole_clip_evenly():
    assert frame_indices(9, 5, 4, 0.7, span="whole") == [0, 2, 4, 6, 8]
    closed = frame_indices(8, 4, 4, 0.5, loop=True, span="whole")
    assert closed == [4, 6, 0, 2]


def test_too_short():
    assert min_length(16, 4) == 61
    assert min_length(16, 4, span="whole") == 16
    with pytest.raises(ValueError, match="too short"):
        frame_indices(60, 16, 4, 0)
