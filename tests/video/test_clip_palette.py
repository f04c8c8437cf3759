"""256 colours: exact where they suffice, better than Pillow's default where not, quiet when dithered."""

from __future__ import annotations

import numpy as np
import pytest
from clip_scenes import moving_disc, psnr
from PIL import Image

from stillmotion.video import Clip
from stillmotion.video.palette import _nearest, to_palette


def shown(frames: np.ndarray, dither: str = "none") -> np.ndarray:
    indices, palette = to_palette(frames, dither)
    assert len(palette) <= 256 and indices.dtype == palette.dtype == np.uint8
    return palette[indices]


@pytest.mark.parametrize("dither", ["none", "ordered", "floyd-steinberg"])
def test_few_colours_are_kept_exactly(dither):
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    frames = colours[np.random.default_rng(1).integers(0, 256, (3, 20, 30))]
    assert np.array_equal(shown(frames, dither), frames)


def test_the_palette_beats_pillows_own_for_a_whole_clip():
    frames = moving_disc(16, 96, 128)
    stack = Image.fromarray(frames.reshape(-1, 128, 3))
    theirs = np.asarray(stack.quantize(256, dither=0).convert("RGB")).reshape(frames.shape)
    ours = psnr(shown(frames), frames)
    assert ours > psnr(theirs, frames) + 1 and ours > 34


def test_colours_are_matched_to_the_nearest_entry():
    random = np.random.default_rng(2)
    colours, palette = random.integers(0, 256, (500, 3)), random.integers(0, 256, (40, 3)).astype(np.uint8)
    distances = ((colours[:, None] - palette[None].astype(int)) ** 2).sum(-1)
    chosen = distances[np.arange(500), _nearest(colours.astype(np.uint8), palette)]
    assert np.array_equal(chosen, distances.min(1))


@pytest.mark.parametrize("dither", ["ordered", "floyd-steinberg"])
def test_dither_makes_areas_right_on_average(dither):
    frames = moving_disc(2, 128, 128)

    def area_error(quantised):
        blocks = (quantised.astype(float) - frames).reshape(2, 16, 8, 16, 8, 3).mean((2, 4))
        return np.abs(blocks).mean()

    assert area_error(shown(frames, dither)) < 0.8 * area_error(shown(frames))


def test_ordered_dither_stands_still_where_the_clip_does():
    frames = moving_disc(8, 64, 96)
    still = (frames == frames[0]).all((0, 3))
    assert still.mean() > 0.3
    ordered = shown(frames, "ordered")
    assert (ordered == ordered[0]).all((0, 3))[still].all()


def test_an_enlarged_gif_has_the_pixels_of_the_small_one(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), np.uint8)
    small, large = (
        Clip.load(Clip(noise, 8).save(tmp_path / f"{scale}.gif", scale=scale)).frames for scale in (1, 2)
    )
    assert np.array_equal(large, small.repeat(2, axis=1).repeat(2, axis=2))
