"""What the camera does in a clip: dense optical flow, and the affine move that fits it best.

Flow (OpenCV's DIS, Kroeger et al. 2016) is known only where the image has texture, and along an edge not at
all: there it is made up. So at every point each direction counts as much as the image changes in it (the
structure tensor), and points that do not follow the common move (the subject's own) count less with each
round. DIS prefers smooth flow and sees turns as smaller than they are: the next frame is moved back by what
was found, and what is left is added.

Directions are those of stillmotion.datasets.camera_moves, named after the camera: pan-left takes the image
right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from scipy import ndimage

from stillmotion.errors import StillmotionError

NAMES = {
    "pan": ("pan-right", "pan-left"),
    "tilt": ("tilt-up", "tilt-down"),
    "zoom": ("zoom-in", "zoom-out"),
    "roll": ("roll-clockwise", "roll-anticlockwise"),
}
"""Number of a CameraFit -> the move when it is positive, and when it is negative."""

STILL = 0.02
"""pixels per frame below which nothing is called a move"""

ROUNDS = 5
PASSES = 3
KNOWN = 1e-3
"""part of the strongest texture below which a point tells nothing"""
BLUR = 1.0
"""pixels over which texture is gathered"""


@dataclass(frozen=True)
class CameraFit:
    """The mean move from one frame to the next.

    `pan` and `tilt` are pixels per frame of the camera to the right and up (the image goes left and down),
    `zoom` is by what part the image grows, `roll` degrees by which it turns clockwise. `shares` are the
    parts of the move that each explains, together 1; `width` is that of the frames.
    """

    pan: float
    tilt: float
    zoom: float
    roll: float
    speed: float
    """pixels per frame that the fitted move shifts what is seen, root mean square"""
    shares: Mapping[str, float]
    width: int

    @property
    def dominant(self) -> str:
        """The move that explains most, such as zoom-in; "still" where nothing moves."""
        if self.speed < STILL:
            return "still"
        kind = max(self.shares, key=lambda name: self.shares[name])
        return NAMES[kind][getattr(self, kind) < 0]

    @property
    def of_width(self) -> tuple[float, float]:
        """Pan and tilt per frame as parts of the frame's width."""
        return self.pan / self.width, self.tilt / self.width


def camera_of(frames: np.ndarray) -> CameraFit:
    """The camera's move in a clip (F, H, W, 3) uint8 of at least two frames.

    StillmotionError without OpenCV (`pip install 'stillmotion[quality]'`).
    """
    if len(frames) < 2:
        raise StillmotionError(f"A clip of {len(frames)} frame has no motion to measure: give at least two.")
    cv2 = _opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    found = [between(one, other) for one, other in zip(grey, grey[1:], strict=False)]
    moves = np.mean([move for move, _ in found], axis=0)
    return _named(moves, float(np.mean([radius for _, radius in found])), frames.shape[2])


def between(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """The move from one grey image (H, W) uint8 to another, and the mean square of radii; see `fit`."""
    cv2 = _opencv()
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    certain = texture(one)
    move, radius = np.zeros(4), 0.0
    for _ in range(PASSES):
        back = cv2.warpAffine(
            other,
            _matrix(move, one.shape),
            one.shape[::-1],
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        left, radius = fit(flow.calc(one, back, None), certain)
        move = move + left
    return move, radius


def texture(grey: np.ndarray) -> np.ndarray:
    """(H, W, 2, 2) of how certain flow is at each point in each direction: the structure tensor."""
    image = grey.astype(np.float64) / 255
    slope = np.stack([ndimage.sobel(image, 1), ndimage.sobel(image, 0)], -1)
    return ndimage.gaussian_filter(slope[..., :, None] * slope[..., None, :], (BLUR, BLUR, 0, 0))


def fit(flow: np.ndarray, certain: np.ndarray) -> tuple[np.ndarray, float]:
    """The move (right, down, growth, turn) that fits a flow (H, W, 2) best, and the mean square of radii.

    Robust: each round, points are weighed by how well they followed the last one (Geman-McClure).
    """
    height, width = flow.shape[:2]
    weight = np.trace(certain, axis1=-2, axis2=-1)
    known = weight > KNOWN * weight.max()
    if not known.any():
        return np.zeros(4), 0.0
    weight, certain, flow = weight[known], certain[known], flow[known].astype(np.float64)
    y, x = np.mgrid[:height, :width][:, known] - np.array([[(height - 1) / 2], [(width - 1) / 2]])
    one, none = np.ones_like(x), np.zeros_like(x)
    design = np.stack([np.stack([one, none, x, -y], -1), np.stack([none, one, y, x], -1)], -2)  # (n, 2, 4)
    weighed = np.swapaxes(design, -1, -2) @ certain
    normal, sides = weighed @ design, (weighed @ flow[..., None])[..., 0]
    trust, move = np.ones_like(weight), np.zeros(4)
    for _ in range(ROUNDS):
        move = np.linalg.lstsq(np.tensordot(trust, normal, 1), trust @ sides, rcond=None)[0]
        off = design @ move - flow
        apart = np.einsum("ni,nij,nj->n", off, certain, off) / weight
        trust = 1 / (1 + apart / max(float(np.average(apart, weights=weight)), 1e-4)) ** 2
    return move, float(np.average(x**2 + y**2, weights=weight))


def _matrix(move: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(2, 3) for OpenCV, which counts pixels from the corner."""
    right, down, growth, turn = move
    linear = np.array([[1 + growth, -turn], [turn, 1 + growth]])
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    return np.column_stack([linear, centre + [right, down] - linear @ centre])


def _named(moves: np.ndarray, radius: float, width: int) -> CameraFit:
    right, down, growth, turn = map(float, moves)
    squares = {"pan": right**2, "tilt": down**2, "zoom": growth**2 * radius, "roll": turn**2 * radius}
    total = sum(squares.values())
    shares = {name: square / total if total else 0.0 for name, square in squares.items()}
    return CameraFit(-right, down, growth, float(np.degrees(turn)), total**0.5, shares, width)


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise StillmotionError(
            "Measuring the camera's move needs OpenCV: pip install 'stillmotion[quality]'."
        ) from None
    return cv2
