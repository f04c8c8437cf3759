"""Tags that somebody made by hand: bounded before memory is taken, and never in the way of the pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from stillmotion.video import Clip, open_frames
from stillmotion.video.metadata import read_tag
from stillmotion.video.timing import constant_rate

GOOD = {"stillmotion": 1, "frames": 4, "fps": 8.0, "width": 16, "height": 16}


@pytest.mark.parametrize(
    "changed",
    [
        {"frames": 10**8, "fps": 2e8},
        {"frames": 0},
        {"frames": -4},
        {"frames": True},
        {"frames": "4"},
        {"frames": None},
        {"fps": 0},
        {"fps": 1e99},
        {"width": 10**50},
        {"height": [16]},
    ],
)
def test_a_tag_out_of_bounds_is_none(changed) -> None:
    assert read_tag(json.dumps(GOOD)).frames == 4
    assert read_tag(json.dumps(GOOD | changed)) is None


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD).replace("8.0", "1e999"),
        json.dumps(GOOD).replace("8.0", "NaN"),
        json.dumps(GOOD).replace('"frames": 4', '"frames": 1' + "0" * 400),
        json.dumps(GOOD)[:-1] + ', "frames": 5}',
        "[" * 10**5 + "]" * 10**5,
        json.dumps(GOOD | {"x": "y" * 2**20}),
        b"\xff\xfe\x00",
    ],
)
def test_text_that_is_no_tag(text) -> None:
    assert read_tag(text) is None


@pytest.mark.parametrize("request_", [[1], "x", 3])
def test_a_request_of_another_type_is_left_out(request_) -> None:
    assert read_tag(json.dumps(GOOD | {"request": request_})).request is None


def test_a_still_does_not_grow_to_gigabytes_by_its_tag(tmp_path) -> None:
    file = tmp_path / "still.gif"
    for frames, shown in [(500, 500), (10**6, 1)]:
        Image.new("RGB", (64, 64)).save(file, comment=json.dumps(GOOD | {"frames": frames}))
        assert len(open_frames(file)) == shown
    assert Clip.load(file).frames.shape == (1, 64, 64, 3)


def test_images_that_stand_for_days_are_shown_once() -> None:
    fps, shown = constant_rate([1.0] * 3 + [65_535_000.0], 1.0)
    assert np.array_equal(shown, [0, 1, 2, 3]) and fps == pytest.approx(4000 / 65_535_003)
    assert len(constant_rate([40.0, 40.0, 4000.0], 1.0)[1]) == 102
