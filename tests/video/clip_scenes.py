"""A small clip with the troubles of real ones: gradients, an edge that moves, a still background."""

from __future__ import annotations

import numpy as np


def moving_disc(frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    background = np.stack([x * 3, y * 4, 255 - x - y], -1).clip(0, 255)
    images = []
    for number in range(frames):
        centre = width * (0.2 + 0.6 * number / max(1, frames - 1))
        distance = np.hypot(x - centre, y - height / 2)
        cover = (height / 4 - distance).clip(0, 1)[..., None]
        disc = np.stack([240 - distance * 3, 60 + distance * 2, 40 + 0 * distance], -1)
        images.append(background * (1 - cover) + disc * cover)
    return np.stack(images).clip(0, 255).astype(np.uint8)


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Decibels; infinite for equal arrays."""
    assert ours.shape == theirs.shape
    error = ((ours.astype(np.float64) - theirs) ** 2).mean()
    return np.inf if error == 0 else float(10 * np.log10(255**2 / error))
