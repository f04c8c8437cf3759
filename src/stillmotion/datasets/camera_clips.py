"""Stills and clips as items of which camera moves are made, several of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from stillmotion.datasets.camera_moves import CameraMove, MoveName
from stillmotion.datasets.camera_warp import evenly_spaced, warp
from stillmotion.datasets.sources import Item
from stillmotion.video.readers import FOLDER_FPS, open_frames

MOVE_PARTS = (1.0, 0.5)
"""parts of the move that the shots of an item show in turn; a LoRA learns each at that weight, so that its
weight is a dial"""


@dataclass(frozen=True)
class CameraClip(Item):
    """A still or clip and how the camera moves over it, the whole move or a part; `variant` says the same."""

    camera_move: CameraMove = field(kw_only=True)
    part: float = field(kw_only=True)


def camera_clips(
    items: Sequence[Item],
    move: MoveName,
    amount: float,
    frames: int,
    variants: int,
    uniform: Callable[[int, str], float],
) -> list[CameraClip]:
    """`variants` shots of each item, each a bit different.

    Args:
        items: stills or clips.
        move: what the camera does.
        amount: how far it goes in a clip (see `AMOUNTS`).
        frames: of a shot.
        variants: shots of each item; every second one shows half of the move.
        uniform: gives a number in [0, 1) for the number of a shot and the name of a draw.
    """
    found = []
    for number, item in enumerate(items):
        for variant in range(variants):
            part = MOVE_PARTS[variant % len(MOVE_PARTS)]
            shot = number * variants + variant
            draws = uniform(shot, "camera_amount"), uniform(shot, "camera_shift")
            camera_move = CameraMove.varied(move, part * amount, frames, draws)
            found.append(
                CameraClip(item.path, item.captions, f" {camera_move}", camera_move=camera_move, part=part)
            )
    return found


def read_camera_clip(item: CameraClip, size: int, batch: int) -> tuple[float, Iterator[Tensor]]:
    """The frames of the move, as a latent cache reads them; what moves in a clip keeps its pace."""
    source, frames = open_frames(item.path), item.camera_move.frames
    taken = evenly_spaced(len(source), min(frames, len(source)))
    fps = source.fps * frames / len(source) if len(source) > 1 else FOLDER_FPS
    return fps, iter(warp(source.frames(taken), item.camera_move, size).split(batch))
