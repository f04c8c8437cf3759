"""A clip in Python and in notebooks: a sequence of images that shows itself."""

from __future__ import annotations

import io
import re
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from stillmotion.request import Request
from stillmotion.video import Clip

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 8, 16, 3), dtype=np.uint8)
CLIP = Clip(FRAMES, 8.0, Request(prompt="a <b>rocket</b>", seed=3))


def test_frames_one_by_one_and_parts() -> None:
    assert [np.array_equal(image, frame) for image, frame in zip(CLIP, FRAMES, strict=True)] == [True] * 4
    assert np.array_equal(CLIP[-1], FRAMES[3]) and CLIP[0].size == (16, 8)
    part = CLIP[1:3]
    assert np.array_equal(part.frames, FRAMES[1:3]) and (part.fps, part.request) == (8.0, CLIP.request)
    assert np.array_equal(CLIP[::-1].frames, FRAMES[::-1])
    with pytest.raises(IndexError):
        CLIP[4]
    with pytest.raises(ValueError, match="A clip is"):
        CLIP[4:]


def test_a_clip_shows_itself() -> None:
    assert repr(CLIP) == "Clip(4 frames of 16x8 at 8 fps, 'a <b>rocket</b>')"
    shown = CLIP._repr_mimebundle_()
    assert shown["text/plain"] == repr(CLIP)
    assert "seed: 3" in shown["text/html"] and "&lt;b&gt;" in shown["text/html"]
    data = re.search(r"base64,([^\"]+)", shown["text/html"])[1]
    with Image.open(io.BytesIO(b64decode(data))) as image:
        assert image.format == "WEBP" and image.n_frames == 4
        assert np.array_equal(np.asarray(image.convert("RGB")), FRAMES[0])
