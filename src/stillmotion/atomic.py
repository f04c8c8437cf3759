"""Files and folders that appear whole or not at all, and never over something that should stay.

The new content is written under a hidden name in the same folder and renamed at the end; whatever interrupts
the writing (Ctrl-C too) takes the unfinished file away with it. `durable` also flushes it to the disk before
it gets its name, for what must survive a power cut. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillmotion.errors import OutputError


def check_free(path: Path, overwrite: bool) -> None:
    """Raises `OutputError` if something stands at `path` and may not be replaced."""
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(
            f"{path} exists and is not empty: choose another name, or give --force to replace it."
        )
    if path.exists() and not path.is_dir() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or give --force to overwrite it.")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise OutputError(f"{path} cannot be written because {place} is a file, not a folder.")
    if not os.access(place, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {place}.")


@contextmanager
def replacing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A free name beside `path` for a new file or folder, which becomes `path` when the block ends well."""
    check_free(path, overwrite)
    made = _make_parents(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        check_free(path, overwrite)  # it may have appeared meanwhile
        _open_up(unfinished)
        if unfinished.is_dir():
            _swap_folder(unfinished, path)
        else:
            os.replace(unfinished, path)
    except BaseException:
        _remove(unfinished)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()
        raise


@contextmanager
def durable(path: str | Path) -> Iterator[Path]:
    """`replacing`, over what was there; the content has reached the disk before it becomes `path`."""
    path = Path(path)
    with replacing(path, overwrite=True) as unfinished:
        yield unfinished
        for part in (unfinished, *unfinished.rglob("*")):
            _flush(part)
    _flush(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """A whole text file, UTF-8, flushed to the disk."""
    with durable(path) as unfinished:
        unfinished.write_text(text, "utf-8")


def sweep(folder: Path) -> None:
    """Removes what a killed process left unfinished in this folder."""
    for leftover in folder.glob(".*.part*"):
        _remove(leftover)


def _make_parents(path: Path) -> list[Path]:
    """The folders that had to be made for `path`, innermost first."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    return missing


def _swap_folder(new: Path, path: Path) -> None:
    """A folder cannot be renamed over a full one: the old one steps aside first, and back if that fails."""
    old = path.with_name(new.name + ".old")
    if not path.exists():
        os.replace(new, path)
        return
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _open_up(path: Path) -> None:
    """Gives files the permissions that new files have here: safetensors writes for the owner's eyes only."""
    probe = path.with_name(path.name + ".mode")
    probe.touch(exist_ok=False)
    usual = probe.stat().st_mode & 0o777
    probe.unlink()
    for part in (path, *path.rglob("*")):
        if part.is_file() and part.stat().st_mode & 0o777 == 0o600:
            part.chmod(usual)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
