"""Frames side by side: every cell at its place, crisp when enlarged."""

from __future__ import annotations

import numpy as np
import pytest

from stillmotion.video import Clip, grid
from stillmotion.video.contact_sheet import labelled_sheet


def test_a_sheet_shows_every_frame_at_its_place(clip):
    sheet = np.asarray(clip.sheet(columns=5, gap=3))
    assert sheet.shape == (3 * 48 + 2 * 3, 5 * 64 + 4 * 3, 3)
    for number, frame in enumerate(clip.frames):
        top, left = number // 5 * 51, number % 5 * 67
        assert np.array_equal(sheet[top : top + 48, left : left + 64], frame)
    assert (sheet[-1, -1] == 255).all() and (sheet[48:51] == 255).all()


def test_sheets_enlarge_crisply_reduce_and_need_no_columns(clip):
    double = np.asarray(clip.sheet(columns=12, gap=0, scale=2))
    assert np.array_equal(double[::2, ::2], np.concatenate(list(clip.frames), 1))
    assert np.array_equal(double[::2], double[1::2])
    assert clip.sheet(scale=0.5, gap=0).size == (4 * 32, 3 * 24)
    assert Clip(clip.frames[:1], 8.0).sheet(columns=7).size == (64, 48)


def test_numbers_and_captions_add_ink_where_they_should(clip):
    plain, numbered = (np.asarray(clip.sheet(gap=0, numbers=numbers)) for numbers in (False, True))
    changed = (plain != numbered).any(-1)
    assert changed[:24, :40].any() and not changed[30:48].any()
    captioned = clip.sheet(gap=0, caption="a rocket, 3d render style, taking off over a blue sea " * 4)
    above = captioned.height - plain.shape[0]
    assert above > 40, "long captions are wrapped"
    assert np.array_equal(np.asarray(captioned)[above:], plain)
    assert (np.asarray(captioned)[:above] < 128).any()
    dark = np.asarray(clip.sheet(caption="x", background=(0, 0, 0)))
    assert (dark[:20] > 128).any(), "the caption is readable on a dark sheet"


def test_a_labelled_sheet_names_rows_and_columns(clip):
    rows = [("a rocket", list(clip.frames[:3])), ("a dog " * 50, list(clip.frames[3:6]))]
    sheet = np.asarray(labelled_sheet("step 150", ["with 1", "with 6", "without 1"], rows, gap=4))
    line = 18
    assert sheet.shape == (2 * line + 2 * (line + 48 + 4) - 4, 3 * 68 - 4, 3)
    ink = (sheet < 128).any(-1)
    assert ink[:line].any() and ink[line : 2 * line, :60].any() and ink[line : 2 * line, 136:].any()
    for row, (_, images) in enumerate(rows):
        top = 2 * line + row * (line + 48 + 4)
        assert ink[top : top + line].any(), "each row has a label"
        for column, image in enumerate(images):
            left = column * 68
            assert np.array_equal(sheet[top + line : top + line + 48, left : left + 64], image)
    bare = np.asarray(labelled_sheet("", ["", "", ""], [("", images) for _, images in rows]))
    assert bare.shape == sheet.shape and (bare[: 2 * line] == 255).all()
    tiny = labelled_sheet("a long title", ["long name"], [("x", [clip.frames[0][:4, :4]])])
    assert tiny.size == (4, 2 * 18 + 18 + 4), "what has no room is left out"


def test_a_grid_is_one_clip(clip):
    other = Clip(clip.frames[:5, :, ::-1], clip.fps)
    both = grid([clip, other, clip], columns=2, gap=2)
    assert both.frames.shape == (12, 98, 130, 3)
    assert both.fps == clip.fps and both.request == clip.request
    for number in range(12):
        assert np.array_equal(both.frames[number, :48, :64], clip.frames[number])
        assert np.array_equal(both.frames[number, :48, 66:], other.frames[number % 5])
        assert np.array_equal(both.frames[number, 50:, :64], clip.frames[number])
    with pytest.raises(ValueError, match="clips of one size and rate"):
        grid([clip, Clip(clip.frames[:, 1:], clip.fps)])
