"""The folder of a run: made, kept for one process, swept of what a killed one left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stillmotion.atomic import make_folder, sweep
from stillmotion.errors import OutputError, TrainingError

LOCK = ".lock"
SWEPT = ("", "checkpoints", "samples", "motion", "class-images", "latents")
"""folders of a run in which files appear whole or not at all"""


class RunFolder:
    """A folder that this process holds the lock of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _identity(path / LOCK)

    def check_ours(self) -> None:
        """TrainingError if the folder was removed and another run has begun in its place."""
        now = _identity(self.path / LOCK)
        if now is not None and now != self._lock:
            raise TrainingError(
                f"{self.path} was removed and another run has begun in it, so this one stops and writes "
                "nothing there: give each run a folder of its own."
            )


@contextmanager
def claim(path: Path) -> Iterator[RunFolder]:
    """The folder at `path`, made if it is missing, locked until the block ends or the process dies.

    OutputError if it cannot be a folder of a run, TrainingError if another run holds it. A folder that is
    still empty at the end is taken away again.
    """
    make_folder(path)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise TrainingError(
            f"Another run is writing into {path}: wait until it has ended, or give another --output."
        ) from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be the folder of a run ({error.strerror or error}): give another --output."
        ) from error
    try:
        for name in SWEPT:
            sweep(path / name)
        for folder in (path / "latents").glob("??"):
            sweep(folder)
        yield RunFolder(path)
    finally:
        if path.is_dir() and os.listdir(path) == [LOCK]:
            (path / LOCK).unlink()
            path.rmdir()
        lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    """What stays the same as long as the file is not removed; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
