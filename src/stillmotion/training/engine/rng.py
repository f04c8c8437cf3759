"""All randomness of a run as a pure function of (seed, number of the sample, name of the draw).

There is no state to save: after a restart sample number n is what it would have been, and two processes with
one clip each draw what one process with two clips draws. A new draw takes a new name and changes no other.

    step s, global batch of G samples:   numbers s*G ... s*G + G-1
    epoch e of N items:                  its own permutation; sample n takes item n mod N of epoch n div N
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

DRAWS = "by name"
"""how samples are drawn, as checkpoints say it; older ones drew by position"""


@dataclass(frozen=True)
class SampleRng:
    """The random numbers of one training sample, a function of seed, number and the name of each draw."""

    seed: int
    number: int

    def item(self, items: int) -> int:
        """Which of `items` it takes: every item once per epoch."""
        epoch, place = divmod(self.number, items)
        return int(shuffled(self.seed, epoch, items)[place])

    def uniform(self, name: str) -> float:
        """A number in [0, 1), the same at every call with this name: "timestep", "text_dropout", ..."""
        return (_seed(self.seed, self.number, f"uniform {name}") >> 10) / 2**53

    def index(self, name: str, count: int) -> int:
        """One of 0 ... count - 1, all equally likely."""
        return int(self.uniform(name) * count)

    def noise(self, *shape: int, name: str = "noise") -> Tensor:
        """Standard normal noise of this shape, float32, on the CPU: the same on every device."""
        generator = Generator().manual_seed(_seed(self.seed, self.number, name))
        return torch.randn(shape, generator=generator)

    def stream(self, name: str) -> SampleRng:
        """A generator for another sample of the same number, whose draws have nothing to do with these."""
        return SampleRng(_seed(self.seed, 0, name), self.number)


def sample_rngs(seed: int, step: int, part: int, size: int, parts: int) -> list[SampleRng]:
    """The samples of one pass of one process.

    Args:
        seed: of the run.
        step: 0-based optimizer step.
        part: which of the step's passes, over all processes.
        size: samples of a pass.
        parts: passes of a step, over all processes.
    """
    first = (step * parts + part) * size
    return [SampleRng(seed, number) for number in range(first, first + size)]


def seed_model(seed: int, step: int, part: int) -> None:
    """Sets torch's own generator, for what draws inside a model (dropout), by the place in the run."""
    torch.manual_seed(_seed(seed, step, f"model {part}"))


def _seed(seed: int, number: int, name: str) -> int:
    """63 bits."""
    digest = hashlib.blake2b(f"{seed} {number} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=4)
def shuffled(seed: int, epoch: int, items: int) -> np.ndarray:
    """The order (items,) in which an epoch takes its items."""
    return np.random.default_rng(_seed(seed, epoch, "order")).permutation(items)
