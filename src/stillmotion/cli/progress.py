"""What a user sees while waiting: loading, sampling and decoding, each with the time that is left.

On stderr, and only in a terminal; in a pipe or a log nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Eta

from stillmotion.foreign import printable

LABELS = {"sampling": "drawing", "decoding": "decoding"}


class Waiting:
    """Bars by stage; `step` is the `on_step` of an Animator."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, int] = {}
        self.clip = ""

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """A stage of unknown length."""
        task = self._progress.add_task(label, total=None)
        yield
        self._progress.update(task, total=1, completed=1)

    def step(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are finished; a new bar for every stage of every clip."""
        label = f"{LABELS[stage]}{self.clip}"
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def waiting() -> Iterator[Waiting]:
    """Bars while the block runs, gone without a trace of control codes when stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Eta(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Waiting(progress)


def quiet_libraries() -> None:
    """Their progress bars would tear ours; the downloads of the hub keep theirs."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
