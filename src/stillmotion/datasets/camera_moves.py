"""Camera moves as affine matrices: what each is called, and where it takes a point.

Moves are named after the camera, as film makers do, so the image goes the other way:

    pan-left   content to the right    zoom-in    content grows      roll-clockwise        the image turns
    tilt-up    content downwards       zoom-out   content shrinks    roll-anticlockwise    on the screen

The amount is that of the whole clip: zoom by what part (0.25: to 1.25 times), pan and tilt in widths of the
image, roll in degrees. The pace is steady (a zoom grows by the same factor each frame), and in the middle
of the clip the image stands where it stood. Points are (x, y), x to the right and y down, the shorter side
of the image reaching from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MoveName = Literal[
    "zoom-in",
    "zoom-out",
    "pan-left",
    "pan-right",
    "tilt-up",
    "tilt-down",
    "roll-clockwise",
    "roll-anticlockwise",
]

AMOUNTS: dict[str, float] = {"zoom": 0.25, "pan": 0.2, "tilt": 0.2, "roll": 20.0}
"""Visible but moderate, by the kind of move."""

FORWARD = ("zoom-in", "pan-left", "tilt-up", "roll-clockwise")
"""Moves whose numbers are positive here; the others are the same backwards."""

VARIATION = 0.25
"""by what part shots vary: of the amount, and of a clip that they begin earlier or later"""


@dataclass(frozen=True)
class CameraMove:
    """One way to film an image; `shift` is by how many clips it begins later in its course."""

    move: MoveName
    amount: float
    frames: int
    shift: float = 0.0

    @classmethod
    def varied(cls, move: MoveName, amount: float, frames: int, uniforms: Sequence[float]) -> CameraMove:
        """A variation of a move; `uniforms` are two numbers in [0, 1)."""
        part, shift = (VARIATION * (2 * choice - 1) for choice in uniforms)
        return cls(move, round(amount * (1 + part), 6), frames, round(shift, 6))

    def __str__(self) -> str:
        return f"{self.move} {self.amount:g} {self.frames} {self.shift:g}"


def matrices(move: MoveName, amount: float, frames: int, shift: float = 0.0) -> np.ndarray:
    """(frames, 2, 3): where in each frame a point of the image is, (x, y) = A @ (x0, y0, 1)."""
    course = np.linspace(-0.5, 0.5, frames) + shift if frames > 1 else np.array([shift])
    course = course if move in FORWARD else -course
    found = np.tile(np.eye(2, 3), (frames, 1, 1))
    kind = move.partition("-")[0]
    if kind == "zoom":
        found[:, [0, 1], [0, 1]] = (1 + amount) ** course[:, None]
    elif kind == "roll":
        angle = np.radians(amount) * course
        found[:, 0, 0] = found[:, 1, 1] = np.cos(angle)
        found[:, 1, 0], found[:, 0, 1] = np.sin(angle), -np.sin(angle)
    else:
        found[:, 0 if kind == "pan" else 1, 2] = 2 * amount * course
    return found
