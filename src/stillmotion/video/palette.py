"""256 colours for a whole clip: one palette shared by all frames, chosen by measured error, with dither.

Three cheap quantisers (median cut, maximum coverage, octree) each propose a palette; a few rounds of k-means
on the clip's own colours improve every proposal, and the one with the smallest squared error wins. Colours
are matched exactly (nearest in RGB), and a clip with at most 256 colours is kept as it is. One palette for
all frames: still areas stay still, and the file stores it once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Dither = Literal["none", "floyd-steinberg", "ordered"]

COLOURS = 256
ROUNDS = 4
MIX = 8
"""Palette entries that ordered dither mixes to one colour."""
SAMPLE = 1 << 16
"""Pixels looked at when choosing, so that large clips do not take for ever."""
PROPOSED_FROM = 1 << 15
"""Pixels of which the quantisers propose: they take most of the time, and k-means does the rest."""
BAYER = np.array(
    [
        [0, 32, 8, 40, 2, 34, 10, 42],
        [48, 16, 56, 24, 50, 18, 58, 26],
        [12, 44, 4, 36, 14, 46, 6, 38],
        [60, 28, 52, 20, 62, 30, 54, 22],
        [3, 35, 11, 43, 1, 33, 9, 41],
        [51, 19, 59, 27, 49, 17, 57, 25],
        [15, 47, 7, 39, 13, 45, 5, 37],
        [63, 31, 55, 23, 61, 29, 53, 21],
    ]
)
"""Order in which the pixels of an 8x8 tile light up (Bayer 1973)."""


def to_palette(frames: np.ndarray, dither: Dither = "none") -> tuple[np.ndarray, np.ndarray]:
    """Indices (F, H, W) uint8 and the palette (n <= 256, 3) uint8 of frames (F, H, W, 3) uint8.

    "ordered" dither is a fixed pattern that stands still on still areas; "floyd-steinberg" is finer in one
    image but crawls between frames and makes larger files.
    """
    palette = _few_colours(frames)
    if palette is not None:
        dither = "none"
    else:
        palette = _best_palette(frames)
    return np.stack([_matched(frame, palette, dither) for frame in frames]), palette


def _matched(frame: np.ndarray, palette: np.ndarray, dither: Dither) -> np.ndarray:
    """Palette indices (H, W) uint8 of a frame (H, W, 3)."""
    if dither == "floyd-steinberg":
        return _diffused(frame, palette)
    colours, where, _ = _distinct(frame)
    if dither == "none":
        return _nearest(colours, palette)[where]
    height, width = where.shape
    turn = np.tile(BAYER * MIX // BAYER.size, (-(-height // 8), -(-width // 8)))[:height, :width]
    return _mixtures(colours, palette)[where, turn]


def _few_colours(frames: np.ndarray) -> np.ndarray | None:
    """All colours (n, 3) uint8 of the frames, or None if they are more than fit."""
    known = np.empty((0, 3), np.uint8)
    for frame in frames:
        known, _, _ = _distinct(np.concatenate([known, frame.reshape(-1, 3)]))
        if len(known) > COLOURS:
            return None
    return known


def _best_palette(frames: np.ndarray) -> np.ndarray:
    """Up to 256 colours (n, 3) uint8 with the least squared error on a regular sample of the pixels."""
    pixels = frames.reshape(-1, 3)
    colours, _, counts = _distinct(pixels[:: len(pixels) // SAMPLE | 1])  # an odd step visits all columns
    image = Image.fromarray(pixels[None, :: len(pixels) // PROPOSED_FROM | 1])
    palettes = []
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE, Image.Quantize.FASTOCTREE):
        proposal = image.quantize(COLOURS, method=method, dither=Image.Dither.NONE).getpalette()
        palettes.append(_k_means(colours, counts, np.array(proposal, np.float32).reshape(-1, 3)[:COLOURS]))
    return min(palettes, key=lambda palette: _squared_error(colours, counts, palette))


def _k_means(colours: np.ndarray, counts: np.ndarray, centres: np.ndarray) -> np.ndarray:
    for _ in range(ROUNDS):
        group = _nearest(colours, centres)
        size = np.bincount(group, counts, len(centres))
        sums = [np.bincount(group, counts * colours[:, c], len(centres)) for c in range(3)]
        used = size > 0
        centres = (np.stack(sums, 1)[used] / size[used, None]).astype(np.float32)
    return np.unique(np.rint(centres).astype(np.uint8), axis=0)


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index (n,) uint8 of the nearest palette entry for colours (n, 3)."""
    entries = palette.astype(np.float32)
    squares = (entries * entries).sum(1)
    index = np.empty(len(colours), np.uint8)
    for start in range(0, len(colours), 1 << 16):
        part = colours[start : start + (1 << 16)].astype(np.float32)
        index[start : start + (1 << 16)] = (squares - 2 * part @ entries.T).argmin(1)
    return index


def _squared_error(colours: np.ndarray, counts: np.ndarray, palette: np.ndarray) -> float:
    difference = colours.astype(np.float32) - palette[_nearest(colours, palette)]
    return float((difference**2).mean(1) @ counts / counts.sum())


def _distinct(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct colours (n, 3), which one each pixel has (shape of pixels[..., 0]), and their counts."""
    red, green, blue = (pixels[..., c].astype(np.uint32) for c in range(3))
    codes, where, counts = np.unique(
        (red << 16) | (green << 8) | blue, return_inverse=True, return_counts=True
    )
    colours = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], 1).astype(np.uint8)
    return colours, where.reshape(pixels.shape[:-1]), counts


def _mixtures(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Palette indices (n, MIX), dark to light, whose average is close to each of colours (n, 3).

    Pattern dithering (Knoll 1999): each next entry also makes up for what the ones before it missed, at half
    strength, so that entries stay close to the colour.
    """
    missed = np.zeros(colours.shape, np.float32)
    mix = np.empty((len(colours), MIX), np.uint8)
    for turn in range(MIX):
        mix[:, turn] = _nearest(colours + missed / 2, palette)
        missed += colours.astype(np.float32) - palette[mix[:, turn]]
    light = palette @ np.array([0.299, 0.587, 0.114])
    return np.take_along_axis(mix, light[mix].argsort(axis=1, kind="stable"), axis=1)


def _diffused(frame: np.ndarray, palette: np.ndarray) -> np.ndarray:
    holder = Image.new("P", (1, 1))
    holder.putpalette(np.concatenate([palette, np.repeat(palette[-1:], COLOURS - len(palette), 0)]).tobytes())
    image = Image.fromarray(frame).quantize(palette=holder, dither=Image.Dither.FLOYDSTEINBERG)
    return np.minimum(np.asarray(image), len(palette) - 1)
