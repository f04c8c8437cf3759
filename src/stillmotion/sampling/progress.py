"""Progress of sampling and decoding, as one callback."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, int, int], None]
"""Called as (stage, steps done, all steps); stage is "sampling" or "decoding"."""


def no_progress(stage: str, step: int, total: int) -> None:
    """Reports nothing."""
