"""Sizes for images of all shapes, and orders in which neighbours have the same one. Pure functions.

A bucket is a size of about resolution x resolution pixels, with sides that suit the network; each image
goes into the one of the nearest shape, so that hardly anything is cut off.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import chain
from math import log

Size = tuple[int, int]
"""height, width"""

LONGEST = 2
"""sides are between resolution / 2 and resolution * 2"""


def fitting_step(resolution: int, factor: int, halvings: int) -> int:
    """The largest of factor * 2^halvings, ..., factor that divides the resolution; 0 if none does.

    `factor` is pixels per latent, `halvings` how often the network halves its latents.
    """
    steps = (factor * 2**level for level in range(halvings, -1, -1))
    return next((step for step in steps if resolution % step == 0), 0)


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """All sizes with sides that are multiples of `step` and about resolution^2 pixels, never more."""
    sizes = set()
    for side in range(step, LONGEST * resolution + 1, step):
        other = min(resolution**2 // side, LONGEST * resolution) // step * step
        if min(side, other) * LONGEST >= resolution:
            sizes |= {(side, other), (other, side)}
    return sorted(sizes)


def nearest(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The size of the nearest shape; of equal shapes the largest."""

    def distance(size: Size) -> tuple[float, int]:
        return round(abs(log(height * size[1] / (width * size[0]))), 9), -size[0] * size[1]

    return min(sizes, key=distance)


def grouped(order: Sequence[int], groups: Sequence[Hashable], size: int, first: int = 0) -> list[int]:
    """The items of `order` again, so that batches of `size` are of one group wherever that is possible.

    `groups` is that of each item. The order starts `first` items before the first whole batch; there, and at
    the end, stand those that fill no batch with their like.
    """
    waiting: dict[Hashable, list[int]] = {}
    whole = []
    for item in order:
        like = waiting.setdefault(groups[item], [])
        like.append(item)
        if len(like) == size:
            whole.append(waiting.pop(groups[item]))
    loose = list(chain(*waiting.values()))
    while len(loose) < first and whole:
        loose += whole.pop()
    return [*loose[:first], *chain(*whole), *loose[first:]]
