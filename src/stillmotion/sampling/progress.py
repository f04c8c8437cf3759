"""Progress of sampling and decoding: one callback, and a bar for scripts and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ProgressCallback = Callable[[str, int, int], None]
"""Called as (stage, steps done, all steps); stage is "sampling" or "decoding"."""


def no_progress(stage: str, step: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def progress_bar(show: bool | None = None) -> Iterator[ProgressCallback]:
    """A callback that draws a bar for each stage while the block runs, with tqdm as diffusers does.

    `show` is None for where somebody is watching (a terminal, a notebook) and not in pipes and files.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    bars: dict[str, Any] = {}
    disable = (None if not _in_notebook() else False) if show is None else not show

    def on_progress(stage: str, done: int, total: int) -> None:
        bar = bars.get(stage)
        if bar is None or done < bar.n:
            _close(bars)
            bar = bars[stage] = tqdm(total=total, desc=stage, disable=disable, leave=stage == "sampling")
        bar.update(done - bar.n)

    try:
        yield on_progress
    finally:
        _close(bars)


def _close(bars: dict[str, Any]) -> None:
    for bar in bars.values():
        bar.close()
    bars.clear()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")
