"""The log of a run: loss.csv, lines or a progress bar on the terminal, TensorBoard when asked for."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, TextIO, cast

from accelerate import Accelerator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from stillmotion.atomic import durable
from stillmotion.errors import TrainingError
from stillmotion.foreign import printable

RECENT = 10
"""steps whose losses are averaged in what is shown"""
SECONDS = 5.0
"""between two lines where no bar moves"""


@dataclass(frozen=True)
class Step:
    """One optimizer step as it stands in loss.csv: the same numbers however often the run was stopped."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float


class Logger:
    """Logs on the main process only. Use as a context manager."""

    def __init__(
        self, output: Path, accelerator: Accelerator, total: int, every: int | None, tensorboard: bool
    ) -> None:
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise TrainingError(
                "tensorboard is asked for but not installed; pip install 'stillmotion[train]', or leave it "
                "off: loss.csv is written anyway."
            )
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        stream = Steadfast(sys.stderr)
        self.console = Console(file=cast("IO[str]", stream), quiet=not self.main, soft_wrap=True)
        self.bars = self.main and moves(stream)
        self.file = output / "loss.csv"
        self.output, self.total, self.tensorboard = output, total, tensorboard
        self.every, self.lines = every or RECENT, every
        self.began, self.first, self.away = time.monotonic(), 0, 0.0
        self.told = self.began
        self.losses: list[float] = []
        self.bar: Progress | None = None

    def begin(self, step: int, settings: dict[str, Any]) -> None:
        """Starts or goes on after `step` steps: rows that are about to be computed again are dropped."""
        self.began, self.first, self.away = time.monotonic(), step, 0.0
        self.told = self.began
        if self.main:
            kept = [row for row in read_losses(self.file) if row.step <= step]
            with durable(self.file) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Step)])
                writer.writeheader()
                writer.writerows(asdict(row) for row in kept)
        if self.tensorboard:
            plain = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
            self.accelerator.init_trackers("tensorboard", plain, {"tensorboard": {"purge_step": step + 1}})
        if self.bars:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), console=self.console)
            self.task = self.bar.add_task("", total=self.total, completed=step)
            self.bar.start()

    def log(self, sentence: str) -> None:
        """A sentence to the user, above the bar."""
        self.console.print(printable(sentence), markup=False, highlight=False)

    def step(self, row: Step) -> None:
        """Writes one step down."""
        if not self.main:
            return
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(asdict(row).values())
        self.losses.append(row.loss)
        if self.bar is not None:
            self.bar.update(self.task, completed=row.step, description=self._recently(row.step))
        elif self._due(row.step):
            self.log(f"step {row.step}/{self.total}  lr {row.learning_rate:.2e}  {self._recently(row.step)}")
            self.told = time.monotonic()
        if self.tensorboard and (row.step % self.every == 0 or row.step == self.total):
            self.accelerator.log({"loss": self._recent(), "learning_rate": row.learning_rate}, step=row.step)
            self.accelerator.log({"grad_norm": row.grad_norm}, step=row.step)
        self.losses = self.losses[-self.every :]

    def flush(self) -> None:
        """loss.csv reaches the disk: a checkpoint never outlives the rows before it."""
        if self.file.exists():
            with self.file.open("a") as file:
                os.fsync(file.fileno())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens within does not count as time of steps."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.away += time.monotonic() - began

    def image(self, name: str, image: Any, step: int) -> None:
        """An image (H, W, 3) uint8 for TensorBoard."""
        if self.tensorboard:
            self.accelerator.get_tracker("tensorboard").log_images(
                {name: image[None]}, step=step, dataformats="NHWC"
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.tensorboard:
            self.accelerator.end_training()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recent(self) -> float:
        recent = self.losses[-self.every :]
        return sum(recent) / len(recent)

    def _due(self, step: int) -> bool:
        """Whether a line is to be written: every so many steps if that is said, else every few seconds."""
        if self.lines is not None:
            return step % self.lines == 0 or step == self.total
        return step in (self.first + 1, self.total) or time.monotonic() - self.told >= SECONDS

    def _recently(self, step: int) -> str:
        pace = (time.monotonic() - self.began - self.away) / max(1, step - self.first)
        left = duration(pace * (self.total - step))
        return f"loss {self._recent():.4f}  {pace:.2f} s/step  {left} left"


class Steadfast:
    """A stream that nobody may read any more: a closed pipe or terminal makes it silent and ends no run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError:
            with suppress(OSError):  # also what is left in its buffer must go somewhere when Python ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def moves(stream: Any) -> bool:
    """Whether a bar can move there: in a terminal, but not in a pipe, a file, a dumb terminal or CI."""
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown") or bool(os.environ.get("CI"))
    return stream.isatty() and not dumb


def read_losses(path: Path) -> list[Step]:
    """The rows of a loss.csv by step; a line that a kill or a power cut spoilt is left out."""
    if not path.is_file():
        return []
    text = path.read_text("utf-8", errors="replace")
    whole = [line for line in text.splitlines(keepends=True) if line.endswith(("\n", "\r"))]
    rows = {row.step: row for row in map(_row, whole) if row is not None}
    return [rows[step] for step in sorted(rows)]


def _row(line: str) -> Step | None:
    """One line as a step; None for the header and for what is no row."""
    step, *numbers = line.strip().split(",")
    try:
        return Step(int(step), *map(float, numbers))
    except (ValueError, TypeError):
        return None


def duration(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
