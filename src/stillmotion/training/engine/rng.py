"""All randomness of a run as a pure function of (seed, number of the sample).

There is no state to save: after a restart sample number n is what it would have been, and two processes with
one clip each draw what one process with two clips draws.

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

CHOICES, NOISE, OFFSET, MODEL = "choices", "noise", "offset", "model"


@dataclass(frozen=True)
class SampleRng:
    """The random numbers of one training sample, a function of seed and number."""

    seed: int
    number: int

    def item(self, items: int) -> int:
        """Which of `items` it takes: every item once per epoch."""
        epoch, place = divmod(self.number, items)
        return int(shuffled(self.seed, epoch, items)[place])

    def stream(self, purpose: str) -> SampleRng:
        """The generator of the same sample for another purpose."""
        return SampleRng(_seed(self.seed, 0, purpose), self.number)

    def uniforms(self, count: int) -> list[float]:
        """`count` numbers in [0, 1): start, caption, dropout, timestep..."""
        return np.random.default_rng(_seed(self.seed, self.number, CHOICES)).random(count).tolist()

    def noise(self, *shape: int, purpose: str = NOISE) -> Tensor:
        """Normal noise, float32, on the CPU: the same on every device; another one for each purpose."""
        generator = Generator().manual_seed(_seed(self.seed, self.number, purpose))
        return torch.randn(shape, generator=generator)


def sample_rngs(seed: int, step: int, part: int, size: int, parts: int) -> list[SampleRng]:
    """The samples of one part (a pass of a process) of a step that has `parts` parts of `size` samples."""
    first = (step * parts + part) * size
    return [SampleRng(seed, number) for number in range(first, first + size)]


def seed_model(seed: int, step: int, part: int) -> None:
    """Sets torch's own generator, for what draws inside a model (dropout), by the place in the run."""
    torch.manual_seed(_seed(seed, step, f"{MODEL} {part}"))


def _seed(seed: int, number: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed} {number} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=4)
def shuffled(seed: int, epoch: int, items: int) -> np.ndarray:
    """The order (items,) in which an epoch takes its items."""
    return np.random.default_rng(_seed(seed, epoch, "order")).permutation(items)
