"""Camera moves: points go where the name says, images follow, and no border is black."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stillmotion.datasets.camera_clips import camera_clips, read_camera_clip
from stillmotion.datasets.camera_moves import AMOUNTS, CameraMove, MoveName, matrices
from stillmotion.datasets.camera_warp import background, evenly_spaced, warp
from stillmotion.datasets.sources import Item

MOVES = get_args(MoveName)
OPPOSITE = {
    "zoom-in": "zoom-out",
    "pan-left": "pan-right",
    "tilt-up": "tilt-down",
    "roll-clockwise": "roll-anticlockwise",
}


def amount_of(move: str) -> float:
    return AMOUNTS[move.partition("-")[0]]


def moved(move: str, point: tuple[float, float], frames: int = 9) -> np.ndarray:
    """Where a point is in each frame, (frames, 2)."""
    return matrices(move, amount_of(move), frames) @ [*point, 1]


@pytest.mark.parametrize(
    ("move", "point", "axis", "sign"),
    [
        ("pan-left", (0, 0), 0, 1),
        ("pan-right", (0, 0), 0, -1),
        ("tilt-up", (0, 0), 1, 1),
        ("tilt-down", (0, 0), 1, -1),
        ("zoom-in", (0.5, 0), 0, 1),
        ("zoom-out", (0.5, 0), 0, -1),
        ("roll-clockwise", (0.5, 0), 1, 1),
        ("roll-anticlockwise", (0.5, 0), 1, -1),
    ],
)
def test_points_go_where_the_name_says(move, point, axis, sign):
    steps = np.diff(moved(move, point)[:, axis])
    assert (np.sign(steps) == sign).all()


def test_amounts_are_those_of_the_whole_clip():
    pan, zoom = moved("pan-left", (0, 0)), moved("zoom-in", (1, 0))
    assert pan[-1, 0] - pan[0, 0] == pytest.approx(2 * 0.2)  # a fifth of a width of 2
    assert zoom[-1, 0] / zoom[0, 0] == pytest.approx(1.25)
    turn = matrices("roll-clockwise", 20, 9)[[0, -1], 1, 0]
    assert np.degrees(np.arcsin(turn)).tolist() == pytest.approx([-10, 10])


@given(st.sampled_from(MOVES), st.floats(0.01, 2), st.integers(1, 20))
def test_in_the_middle_everything_stands_where_it_stood(move, amount, half):
    assert np.allclose(matrices(move, amount, 2 * half + 1)[half], np.eye(2, 3))


@given(st.sampled_from(list(OPPOSITE)), st.floats(0.01, 2), st.integers(2, 30), st.floats(-0.5, 0.5))
def test_opposite_moves_undo_each_other(move, amount, frames, shift):
    there, back = (matrices(name, amount, frames, shift) for name in (move, OPPOSITE[move]))
    whole = np.concatenate([there, np.tile([[[0.0, 0.0, 1.0]]], (frames, 1, 1))], axis=1)
    assert np.allclose(back @ whole, np.eye(2, 3), atol=1e-9)


@given(st.sampled_from(MOVES), st.integers(3, 30))
def test_the_pace_is_steady(move, frames):
    found = np.concatenate(
        [matrices(move, amount_of(move), frames), np.tile([[[0.0, 0.0, 1.0]]], (frames, 1, 1))], axis=1
    )
    steps = found[1:] @ np.linalg.inv(found[:-1])
    assert np.allclose(steps, steps[0])


@given(st.sampled_from(MOVES), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2))
def test_variations_stay_near_what_was_asked(move, uniforms):
    amount = amount_of(move)
    camera_move = CameraMove.varied(move, amount, 8, uniforms)
    assert (
        0.75 * amount - 1e-6 <= camera_move.amount <= 1.25 * amount + 1e-6 and abs(camera_move.shift) <= 0.25
    )
    assert camera_move == CameraMove.varied(move, amount, 8, uniforms)


def marked(size: int = 48) -> np.ndarray:
    """A red square left above the middle, on white."""
    image = np.full((size, size, 3), 255, np.uint8)
    image[size // 4 : size // 2, size // 4 : size // 2] = (200, 20, 20)
    return image


def centroids(clip: torch.Tensor) -> torch.Tensor:
    """Where the dark is in each frame (frames, 2), x and y in pixels from the middle."""
    dark = 1 - clip.mean(1)
    along = torch.arange(clip.shape[-1]) - (clip.shape[-1] - 1) / 2
    return torch.stack([(dark * along).sum((1, 2)), (dark * along[:, None]).sum((1, 2))], 1) / dark.sum(
        (1, 2)
    ).unsqueeze(1)


@pytest.mark.parametrize("move", MOVES)
def test_images_follow_the_matrices(move):
    """Optically: the centroid of a mark goes where the matrix takes it."""
    clip = warp(marked()[None], CameraMove(move, amount_of(move), 5), 48)
    start = [*(centroids(warp(marked()[None], CameraMove(move, 0.0, 1), 48))[0] / 24).tolist(), 1]
    wanted = 24 * (matrices(move, amount_of(move), 5) @ start)
    assert torch.allclose(centroids(clip).double(), torch.from_numpy(wanted), atol=0.15)


def test_a_image_that_stands_still_is_the_image():
    image = marked()
    clip = warp(image[None], CameraMove("pan-left", 0.0, 2), 48)
    wanted = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(clip, wanted.expand(2, 3, 48, 48), atol=1e-5)


@pytest.mark.parametrize("move", MOVES)
def test_plain_ground_goes_on_and_other_borders_are_never_black(move):
    camera_move = CameraMove(move, amount_of(move), 4, 0.25)
    plain = warp(marked()[None], camera_move, 48)
    assert (plain[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] > 0.99).all()
    bright = np.random.default_rng(0).integers(120, 255, (48, 48, 3)).astype(np.uint8)
    assert background(bright) is None
    assert warp(bright[None], camera_move, 48).min() > -0.5  # a black border would be -1
    assert warp(np.pad(bright, ((0, 0), (30, 30), (0, 0)), "symmetric")[None], camera_move, 24).min() > -0.5


def test_a_larger_image_is_enlarged_until_it_covers_the_frame():
    """Each pixel says how far from the left it is: nothing of the border is drawn twice."""
    ramp = np.tile(np.linspace(0, 255, 96).astype(np.uint8)[None, :, None], (96, 1, 3))
    clip = warp(ramp[None], CameraMove("pan-left", 0.3, 5), 32)
    rows = clip[:, 0, 16]
    assert (rows.diff(dim=1) > 0).all()
    assert rows[0, 0] > rows[-1, 0]


def test_no_flicker_where_a_large_image_is_made_small():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    clip = warp(np.pad(stripes, ((64, 64), (64, 64), (0, 0)))[None], CameraMove("pan-left", 0.1, 5), 32)
    assert clip[:, :, 12:20, 12:20].std() < 0.1


def test_places_are_spread_over_a_clip():
    assert evenly_spaced(16, 16) == list(range(16))
    assert evenly_spaced(1, 4) == [0, 0, 0, 0]
    assert evenly_spaced(9, 5) == [0, 2, 4, 6, 8]


def test_stills_and_clips_become_shots(tmp_path):
    Image.fromarray(marked()).save(tmp_path / "still.jpg")
    images = [Image.fromarray(np.roll(marked(), k, 1)) for k in range(6)]
    images[0].save(tmp_path / "clip.webp", save_all=True, append_images=images[1:], duration=50)
    items = [Item(tmp_path / name, ("a",)) for name in ("still.jpg", "clip.webp")]

    def draw(number: int, name: str) -> float:
        return number / 10 if name == "camera_amount" else 1 - number / 10 - 0.1

    shots = camera_clips(items, "zoom-in", 0.25, 4, 3, draw)
    assert len(shots) == 6 and len({camera_move.variant for camera_move in shots}) == 6
    assert [camera_move.path.name for camera_move in shots] == ["still.jpg"] * 3 + ["clip.webp"] * 3
    assert [camera_move.part for camera_move in shots] == [1, 0.5, 1] * 2
    assert all(0.75 * 0.25 * s.part <= s.camera_move.amount <= 1.25 * 0.25 * s.part for s in shots)
    for camera_move, fps in ((shots[0], 8), (shots[3], 20 * 4 / 6)):
        rate, portions = read_camera_clip(camera_move, 16, 3)
        parts = list(portions)
        assert rate == pytest.approx(fps) and [len(part) for part in parts] == [3, 1]
        assert torch.cat(parts).shape == (4, 3, 16, 16)
