"""Training state that appears whole or not at all, and has reached the disk before it gets its name.

`clip.atomic` renames; here the content is flushed first, so that after a power cut too a name
means a whole file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..clip.atomic import replacing


@contextmanager
def durable(path: str | Path) -> Iterator[Path]:
    """A name to write a file or folder at; it becomes `path`, over what was there, when all went well."""
    path = Path(path)
    with replacing(path, overwrite=True) as unfinished:
        yield unfinished
        for part in (unfinished, *unfinished.rglob("*")):
            _flush(part)
    _flush(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """A whole text file, UTF-8."""
    with durable(path) as unfinished:
        unfinished.write_text(text, "utf-8")


def sweep(folder: Path) -> None:
    """Removes what a killed process left unfinished in this folder."""
    for leftover in folder.glob(".*.part*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
