"""Small operations on pixels that writers and readers share: enlarging, padding, laying on a background."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
MOST_PIXELS = 2**27
"""of one image: 11,585 x 11,585; more than any camera makes, and 400 MB in RGB"""


def enlarged(frames: np.ndarray, scale: int) -> Iterator[np.ndarray]:
    """Each frame (H, W, ...) as crisp blocks of scale x scale, one at a time."""
    for frame in frames:
        yield np.ascontiguousarray(frame.repeat(scale, 0).repeat(scale, 1))


def even(frame: np.ndarray) -> np.ndarray:
    """The frame with its last row and column repeated where its size is odd."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def opaque(image: Image.Image, background: Colour) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8 of an image of any mode; whatever is transparent shows `background`."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits instead of scaling them
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        return np.repeat(_eight_bits(np.asarray(image))[..., None], 3, axis=2)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return np.array(image.convert("RGB"))
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (*background, 255))
    below.alpha_composite(image)
    return np.array(below.convert("RGB"))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of 32-bit integers or floats: full scale is the least that fits of 1, 255, 65535, 2^32 - 1.

    Neither TIFF nor Pillow says how bright a number is; floats between 0 and 1 are what editors and renderers
    write, and what is above the largest number is white.
    """
    scales = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    values = values.astype(np.float64)
    highest = values.max(initial=0, where=np.isfinite(values))
    most = next((scale for scale in scales if highest <= scale), 2**32 - 1)
    values = np.nan_to_num(values, posinf=most, neginf=0)
    return np.rint(values.clip(0, most) * (255 / most)).astype(np.uint8)
