"""What a user sees while waiting: loading, sampling and decoding, each with the time that is left.

On stderr: bars in a terminal; in a pipe, a file, a dumb terminal or a CI log a plain line every few seconds.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Eta

from stillmotion.cli import Settings
from stillmotion.cli.output import in_flags
from stillmotion.foreign import printable
from stillmotion.sampling.jobs import Event, Interrupted, Loaded, Loading, Note, Step

LABELS = {"sampling": "drawing", "decoding": "decoding"}
TELL = 5.0
"""Seconds between two lines where there are no bars."""


class Waiting:
    """Progress by stage, and of the events of a job. `quiet` leaves only what must be said."""

    def __init__(self, progress: Progress, quiet: bool = False) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._lines = progress.disable and not quiet
        self._quiet = quiet
        self._label, self._began, self._told = "", 0.0, monotonic()
        self._loading: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Shows what happens in a job."""
        if isinstance(event, Loading):
            quiet_libraries()
            self._begin("loading")
        elif isinstance(event, Loaded):
            self._end("loading")
        elif isinstance(event, Step):
            self.step(event)
        elif isinstance(event, Note):
            self.say(f"Note: {event.text}", event.urgent)
        elif isinstance(event, Interrupted):
            advice = f"`stillmotion decode {shlex.quote(str(event.latents))}` goes on from there."
            self.say(f"What was sampled is not lost: {advice}", always=True)

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """A stage of unknown length."""
        self._begin(label)
        yield
        self._end(label)

    def _begin(self, label: str) -> None:
        self._loading = self._progress.add_task(label, total=None)
        self._began = self._told = monotonic()

    def _end(self, label: str) -> None:
        if self._loading is not None:
            self._progress.update(self._loading, total=1, completed=1)
        if self._lines and (took := monotonic() - self._began) > TELL:
            self.say(f"{label}: {took:.0f} s")

    def step(self, event: Step) -> None:
        """Shows how far a stage is; a new bar for every stage of every clip."""
        number = f" {event.clip}/{event.clips}" if event.clips > 1 else ""
        label, done, total = f"{LABELS[event.stage]}{number}", event.done, event.total
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)
        if self._lines:
            self._line(label, done, total)

    def _line(self, label: str, done: int, total: int) -> None:
        now = monotonic()
        if label != self._label:
            self._label, self._began = label, now
        if done and now - self._told > TELL:
            left = (now - self._began) / done * (total - done)
            self.say(f"{label}: {done}/{total}, about {left:.0f} s left")
            self._told = now

    def say(self, text: str, always: bool = False) -> None:
        """A line above the bars; with --quiet only if it is `always` said."""
        if always or not self._quiet:
            self._progress.console.print(
                printable(in_flags(text)), markup=False, highlight=False, soft_wrap=True
            )


@contextmanager
def waiting() -> Iterator[Waiting]:
    """Progress while the block runs, without a trace of control codes when stderr is no terminal."""
    context = click.get_current_context(silent=True)
    settings = context.find_object(Settings) if context else None
    quiet = settings is not None and settings.quiet
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Eta(),
    )
    moves = console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")
    with Progress(*columns, console=console, disable=quiet or not moves) as progress:
        yield Waiting(progress, quiet)


def quiet_libraries() -> None:
    """Their progress bars would tear ours; the downloads of the hub keep theirs."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
