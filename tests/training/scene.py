"""Small moving scenes on disk: a coloured square that slides, with a caption that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30), "black": (0, 0, 0)}


def sliding_square(colour: str, length: int, size: int = 16) -> np.ndarray:
    """(length, size, size, 3) uint8."""
    frames = np.full((length, size, size, 3), 255, np.uint8)
    for number, frame in enumerate(frames):
        left = number % (size - 5)
        frame[5:10, left : left + 5] = COLOURS[colour]
    return frames


def write_clips(folder: Path, length: int = 12, size: int = 16) -> Path:
    """A folder of four lossless WebP animations at 20 fps with captions in sidecar files."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        images = [Image.fromarray(frame) for frame in sliding_square(colour, length, size)]
        path = folder / f"{colour}-square.webp"
        images[0].save(path, save_all=True, append_images=images[1:], duration=50, loop=0, lossless=True)
        path.with_suffix(".txt").write_text(f"a {colour} rocket\n", "utf-8")
    return folder


def write_images(folder: Path, size: int = 16) -> Path:
    """Four images of two shapes, squares on white, with captions in sidecar files."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = [(2 * size, 2 * size), (size, 4 * size), (2 * size, 2 * size), (size, 4 * size)]
    for (colour, rgb), (height, width) in zip(COLOURS.items(), shapes, strict=True):
        pixels = np.full((height, width, 3), 255, np.uint8)
        pixels[4:12, 5:14] = rgb
        Image.fromarray(pixels).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} apple\n", "utf-8")
    return folder
