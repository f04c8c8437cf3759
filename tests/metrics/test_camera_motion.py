"""The camera's move is found again in clips that were made by that move."""

from __future__ import annotations

import sys
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from stillmotion.datasets.camera_moves import AMOUNTS, CameraMove, MoveName
from stillmotion.datasets.camera_warp import warp
from stillmotion.errors import StillmotionError
from stillmotion.metrics.camera_motion import camera_of

FRAMES, SIZE = 6, 96


def emoji(seed: int) -> np.ndarray:
    """A disc with shapes on it, on white: flow is known in few places."""
    choose = np.random.default_rng(seed)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, SIZE - 8, SIZE - 8), fill=tuple(map(int, choose.integers(0, 230, 3))))
    for _ in range(6):
        x, y, w, h = map(int, [*choose.integers(18, 66, 2), *choose.integers(6, 20, 2)])
        shape = draw.ellipse if choose.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(map(int, choose.integers(0, 230, 3))))
    return np.array(image)


def landscape(seed: int) -> np.ndarray:
    """Clouds of colour, wider than high."""
    clouds = gaussian_filter(np.random.default_rng(seed).random((120, 160, 3)), (3, 3, 0))
    return (255 * (clouds - clouds.min()) / np.ptp(clouds)).astype(np.uint8)


IMAGES = {"emoji": emoji(0), "other emoji": emoji(1), "landscape": landscape(0)}


def clip_of(image: np.ndarray, move: str, part: float = 1.0) -> np.ndarray:
    amount = AMOUNTS[move.partition("-")[0]] * part / 2
    pixels = warp(image[None], CameraMove(move, amount, FRAMES), SIZE)
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("move", get_args(MoveName))
@pytest.mark.parametrize("image", IMAGES)
def test_every_move_is_recognised(image, move):
    fit = camera_of(clip_of(IMAGES[image], move))
    assert fit.dominant == move
    assert fit.shares[move.partition("-")[0]] > 0.9


@pytest.mark.parametrize("image", IMAGES)
def test_the_numbers_are_those_of_the_move(image):
    steps = FRAMES - 1
    pan = camera_of(clip_of(IMAGES[image], "pan-right"))
    assert pan.of_width[0] == pytest.approx(0.1 / steps, rel=0.1)
    assert camera_of(clip_of(IMAGES[image], "tilt-down")).of_width[1] == pytest.approx(-0.1 / steps, rel=0.1)
    zoom = camera_of(clip_of(IMAGES[image], "zoom-out")).zoom
    assert zoom == pytest.approx(1.125 ** (-1 / steps) - 1, rel=0.15)
    roll = camera_of(clip_of(IMAGES[image], "roll-clockwise")).roll
    assert roll == pytest.approx(10 / steps, rel=0.1 if image == "landscape" else 0.6)


def test_half_a_move_is_about_half():
    whole, half = (camera_of(clip_of(IMAGES["emoji"], "pan-left", part)).pan for part in (1.0, 0.5))
    assert half / whole == pytest.approx(0.5, abs=0.1)


def test_what_moves_in_the_image_is_not_the_camera():
    """A small square runs to the right over a landscape that the camera leaves upwards."""
    frames = clip_of(IMAGES["landscape"], "tilt-down")
    for number, frame in enumerate(frames):
        frame[40:52, 10 + 5 * number : 22 + 5 * number] = (255, 0, 0)
    assert camera_of(frames).dominant == "tilt-down"


def test_nothing_moves():
    assert camera_of(np.stack([IMAGES["emoji"]] * 3)).dominant == "still"
    assert camera_of(np.full((3, 32, 32, 3), 200, np.uint8)).dominant == "still"


def test_what_cannot_be_measured_is_said(monkeypatch):
    with pytest.raises(StillmotionError, match="no motion to measure"):
        camera_of(np.zeros((1, 8, 8, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(StillmotionError, match=r"stillmotion\[quality\]"):
        camera_of(np.zeros((2, 8, 8, 3), np.uint8))
