"""How far a long preparation is, said now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from stillmotion.training.engine.logger import duration

REPORT_EVERY = 10.0
"""seconds between two lines"""


class Progress:
    """Called with how many are done of `total`; `what` names the work, `noun` its pieces."""

    def __init__(self, log: Callable[[str], None], what: str, noun: str, total: int) -> None:
        self.log, self.what, self.noun, self.total = log, what, noun, total
        self.began = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.told > REPORT_EVERY:
            left = duration((now - self.began) / done * (self.total - done))
            self.log(f"{self.what}: {done} of {self.total} {self.noun}, {left} left")
            self.told = now

    @property
    def took(self) -> str:
        """Time since the beginning, in words."""
        return duration(time.monotonic() - self.began)
