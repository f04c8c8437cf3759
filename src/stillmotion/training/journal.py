"""What a run tells: loss.csv, lines or a progress bar on the terminal, TensorBoard when asked for."""

from __future__ import annotations

import csv
import importlib.util
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stillmotion.atomic import durable
from stillmotion.errors import TrainingError


@dataclass(frozen=True)
class Step:
    """One optimizer step as it stands in loss.csv: the same numbers however often the run was stopped."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float


class Journal:
    """Speaks on the main process only. Use as a context manager."""

    def __init__(
        self, output: Path, accelerator: Accelerator, total: int, every: int, tensorboard: bool
    ) -> None:
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise TrainingError(
                "tensorboard is asked for but not installed; pip install 'stillmotion[train]', or leave it "
                "off: loss.csv is written anyway."
            )
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.console = Console(stderr=True, quiet=not self.main, soft_wrap=True)
        self.file = output / "loss.csv"
        self.output, self.total, self.every, self.tensorboard = output, total, every, tensorboard
        self.began, self.first = time.monotonic(), 0
        self.losses: list[float] = []
        self.bar: Progress | None = None

    def begin(self, step: int, settings: dict[str, Any]) -> None:
        """Starts or goes on after `step` steps: rows that are about to be computed again are dropped."""
        self.began, self.first = time.monotonic(), step
        if self.main:
            kept = [row for row in read_losses(self.file) if row.step <= step]
            with durable(self.file) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Step)])
                writer.writeheader()
                writer.writerows(asdict(row) for row in kept)
        if self.tensorboard:
            plain = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
            self.accelerator.init_trackers("tensorboard", plain, {"tensorboard": {"purge_step": step + 1}})
        if self.main and self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("", total=self.total, completed=step)
            self.bar.start()

    def say(self, sentence: str) -> None:
        """A sentence to the user, above the bar."""
        self.console.print(sentence, markup=False, highlight=False)

    def step(self, row: Step) -> None:
        """Writes one step down."""
        if not self.main:
            return
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(asdict(row).values())
        self.losses.append(row.loss)
        if self.bar is not None:
            self.bar.update(self.task, completed=row.step, description=f"loss {self._recent():.4f}")
        if row.step % self.every == 0 or row.step == self.total:
            if self.bar is None:
                self.say(self._line(row))
            if self.tensorboard:
                self.accelerator.log(
                    {"loss": self._recent(), "learning_rate": row.learning_rate}, step=row.step
                )
                self.accelerator.log({"grad_norm": row.grad_norm}, step=row.step)
            self.losses = self.losses[-self.every :]

    def picture(self, name: str, picture: Any, step: int) -> None:
        """An image (H, W, 3) uint8 for TensorBoard."""
        if self.tensorboard:
            self.accelerator.get_tracker("tensorboard").log_images(
                {name: picture[None]}, step=step, dataformats="NHWC"
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.tensorboard:
            self.accelerator.end_training()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recent(self) -> float:
        recent = self.losses[-self.every :]
        return sum(recent) / len(recent)

    def _line(self, row: Step) -> str:
        pace = (time.monotonic() - self.began) / max(1, row.step - self.first)
        left = duration(pace * (self.total - row.step))
        return (
            f"step {row.step}/{self.total}  loss {self._recent():.4f}  lr {row.learning_rate:.2e}  "
            f"{pace:.2f} s/step  {left} left"
        )


def read_losses(path: Path) -> list[Step]:
    """The rows of a loss.csv; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(fields(Step))][1:]
    return [Step(int(row[0]), *map(float, row[1:])) for row in rows]


def duration(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
