"""A camera that moves over stills or clips: pixels to pixels.

Frames are drawn from the image by bicubic interpolation; an image that is larger than what is drawn of it
is made smaller first, by a filter that lets nothing flicker.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stillmotion.datasets.camera_moves import CameraMove, matrices

PLAIN_BORDER = 0.6
"""part of the border that must have one colour to be a background"""

COLOUR_TOLERANCE = 8
"""levels of 255 within which colours of a background count as one"""


def warp(frames: np.ndarray, camera_move: CameraMove, size: int) -> Tensor:
    """uint8 images (n, H, W, 3), one or several -> (camera_move.frames, 3, size, size) in [-1, 1].

    No black borders: beyond an image with a plain border its colour goes on; another image is enlarged
    until it fills the frame if it has the pixels for that, and its border goes on where it has not.
    """
    height, width = frames.shape[1:3]
    back = _inverse(matrices(camera_move.move, camera_move.amount, camera_move.frames, camera_move.shift))
    shape = np.array([width, height]) / min(width, height)
    plain = background(frames[0])
    if plain is None:
        back /= min(max(_cover(back, shape), 1.0), max(min(width, height) / size, 1.0))
    stack = _near(frames, size / np.abs(np.linalg.det(back[:, :, :2])).min() ** 0.5)
    stack = stack[evenly_spaced(len(stack), camera_move.frames)]
    return _sampled(stack, back / shape[:, None], size, plain).clamp(-1, 1)


def evenly_spaced(total: int, frames: int) -> list[int]:
    """`frames` indices spread evenly over a clip of `total`; some repeat where that is shorter."""
    return [round(k * (total - 1) / max(frames - 1, 1)) for k in range(frames)]


def background(image: np.ndarray) -> Tensor | None:
    """The colour (3,) in [-1, 1] of a plain border of (H, W, 3) uint8, or None."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    colour = np.median(border, axis=0)
    alike = (np.abs(border - colour).max(axis=1) <= COLOUR_TOLERANCE).mean()
    return torch.from_numpy(colour).float() / 127.5 - 1 if alike >= PLAIN_BORDER else None


def _inverse(forward: np.ndarray) -> np.ndarray:
    """Where in the image each point of the frame comes from."""
    linear = np.linalg.inv(forward[:, :, :2])
    return np.concatenate([linear, -linear @ forward[:, :, 2:]], axis=2)


def _cover(back: np.ndarray, shape: np.ndarray) -> float:
    """How many times the image must be enlarged so that no corner of any frame is outside of it."""
    corners = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)]).T
    return float((np.abs(back @ corners).max(axis=(0, 2)) / shape).max())


def _near(frames: np.ndarray, shorter: float) -> Tensor:
    """Images (n, 3, h, w) in [-1, 1], made smaller with care if they are larger than what is drawn."""
    stack = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    scale = shorter / min(stack.shape[-2:])
    if scale >= 1:
        return stack
    shape = [max(1, round(side * scale)) for side in stack.shape[-2:]]
    return F.interpolate(stack, shape, mode="bicubic", antialias=True, align_corners=False)


def _sampled(stack: Tensor, back: np.ndarray, size: int, plain: Tensor | None) -> Tensor:
    grid = F.affine_grid(torch.from_numpy(back).float(), [len(stack), 3, size, size], align_corners=False)
    ground = 0.0 if plain is None else plain.view(3, 1, 1)
    padding = "border" if plain is None else "zeros"
    moved = F.grid_sample(stack - ground, grid, "bicubic", padding, align_corners=False)
    return moved + ground
