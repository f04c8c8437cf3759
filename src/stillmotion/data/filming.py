"""Stills and clips as items of which camera moves are made, several of each. Knows files, and no latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from stillmotion.clip.readers import FOLDER_FPS, open_frames
from stillmotion.data.camera import film, places
from stillmotion.data.moves import Move, Shot
from stillmotion.data.sources import Item

PARTS = (1.0, 0.5)
"""parts of the move that the shots of an item show in turn; a LoRA learns each at that weight, so that its
weight is a dial"""


@dataclass(frozen=True)
class Filmed(Item):
    """A still or clip and how the camera moves over it, the whole move or a part; `variant` says the same."""

    shot: Shot = field(kw_only=True)
    part: float = field(kw_only=True)


def filmed(
    items: Sequence[Item],
    move: Move,
    amount: float,
    frames: int,
    variants: int,
    choices: Callable[[int], Sequence[float]],
) -> list[Filmed]:
    """`variants` shots of each item; `choices` gives two numbers in [0, 1) for the number of a shot."""
    found = []
    for number, item in enumerate(items):
        for variant in range(variants):
            part = PARTS[variant % len(PARTS)]
            shot = Shot.varied(move, part * amount, frames, choices(number * variants + variant))
            found.append(Filmed(item.path, item.captions, f" {shot}", shot=shot, part=part))
    return found


def read_filmed(item: Filmed, size: int, batch: int) -> tuple[float, Iterator[Tensor]]:
    """The frames of the move, as a latent cache reads them; what moves in a clip keeps its pace."""
    source, frames = open_frames(item.path), item.shot.frames
    taken = places(len(source), min(frames, len(source)))
    fps = source.fps * frames / len(source) if len(source) > 1 else FOLDER_FPS
    return fps, iter(film(source.frames(taken), item.shot, size).split(batch))
