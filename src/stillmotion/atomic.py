"""Files and folders that appear whole or not at all, and never over something that should stay.

The new content is written under a hidden name in the same folder and renamed at the end; whatever interrupts
the writing (Ctrl-C too) takes the unfinished file away with it. A file replaces nothing but a regular file, a
folder nothing but an empty folder or one of its own kind (`FolderKind`): never a link, pipe, socket, device
or mount point. `durable` also flushes to the disk, for what must survive a power cut. What the disk refuses
is an `OutputError` that names the path.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from stillmotion.errors import OutputError

SPECIAL = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
LONGEST = 255
"""Bytes in a file name, on nearly every file system."""
ABANDONED = 24 * 3600
"""Seconds after which an unfinished file of another machine belongs to nobody."""
_PART = re.compile(r"\.(?P<name>.*)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.part(?P<end>\.old)?")


@dataclass(frozen=True)
class FolderKind:
    """What a folder of ours holds, by which it is told from a user's: only such a folder is replaced.

    `title` is what it is called; one of the files `marks` must be there, and nothing that does not match
    `names`, a regular expression of paths in the folder ("unet/config.json").
    """

    title: str
    marks: tuple[str, ...]
    names: str

    def stranger(self, folder: Path) -> str | None:
        """What in a folder shows that it is not of this kind; None if it is."""
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or re.fullmatch(self.names, inside)):
                return inside
        if any(folder.iterdir()) and not any((folder / mark).is_file() for mark in self.marks):
            return f"no {' or '.join(self.marks)}"
        return None


def check_free(path: Path, overwrite: bool, folder: FolderKind | None = None) -> None:
    """Raises `OutputError` if a file (or a folder of this kind) cannot be written to `path`."""
    try:
        _check_name(path)
        _check_replaceable(path, overwrite, folder)
        _check_place(path)
    except OSError as error:
        raise refused(path, error) from error


def refused(path: Path, error: Exception) -> OutputError:
    """The error in a sentence: which file could not be written, and what the system said."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return OutputError(f"{path} could not be written: {reason}.")


@contextmanager
def replacing(path: Path, overwrite: bool = False, folder: FolderKind | None = None) -> Iterator[Path]:
    """A free name beside `path` for a new file or folder, which becomes `path` when the block ends well.

    Args:
        path: Where it will be; folders on the way are made.
        overwrite: Whether it may replace a regular file or a folder of the same kind.
        folder: The kind of folder that is written; None for a file.
    """
    check_free(path, overwrite, folder)
    made: list[Path] = []
    unfinished = _hidden_name(path)
    try:
        made = _make_parents(path)
        yield unfinished
        check_free(path, overwrite, folder)  # it may have appeared meanwhile
        _open_up(unfinished)
        _put(unfinished, path, overwrite)
    except BaseException as error:
        with suppress(OSError):  # the folder itself may be gone
            _remove(unfinished)
            for parent in made:
                parent.rmdir()  # refuses if something is in it
        if isinstance(error, (OSError, SafetensorError)):
            raise refused(path, error) from error
        raise


@contextmanager
def durable(path: str | Path, folder: FolderKind | None = None) -> Iterator[Path]:
    """`replacing`, over what was there; the content has reached the disk before it becomes `path`."""
    path = Path(path)
    with replacing(path, overwrite=True, folder=folder) as unfinished:
        yield unfinished
        for part in (unfinished, *unfinished.rglob("*")):
            _flush(part)
    _flush(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """A whole text file, UTF-8, flushed to the disk."""
    with durable(path) as unfinished:
        unfinished.write_text(text, "utf-8")


def make_folder(path: Path) -> None:
    """A folder to write several things into; `OutputError` if it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except FileExistsError as error:
        raise OutputError(f"{path} is a file, not a folder: choose another name for the folder.") from error
    except OSError as error:
        raise refused(path, error) from error


def sweep(folder: Path, ours: bool = True) -> None:
    """Removes what killed processes left unfinished in a folder, and gives back what they had put aside.

    What belongs to a process that still runs stays. `ours` says that nobody else writes hidden ".part" files
    there; without it only names that no other program gives are touched.
    """
    for leftover in sorted(folder.glob(".*.part*")):
        found = _PART.fullmatch(leftover.name)
        if (found is None and not ours) or (found is not None and _alive(leftover, found)):
            continue
        if found is not None and found["end"] == ".old" and not os.path.lexists(folder / found["name"]):
            os.replace(leftover, folder / found["name"])  # killed between the two renames of a swap
        else:
            _remove(leftover)


def _check_name(path: Path) -> None:
    if str(path) == "-":
        raise OutputError("Nothing is written to the standard output: give the name of a file, as clip.gif.")
    if path.name in ("", ".."):
        raise OutputError(f"{path} has no name of its own: give the name of a new file or folder.")
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} is no file name: it has a null character in it.")
    for name in path.parts:
        if (size := len(os.fsencode(name))) > LONGEST:
            raise OutputError(
                f"{name[:40]}... is {size} bytes long, but a file name has at most {LONGEST}: choose a "
                "shorter one."
            )


def _check_replaceable(path: Path, overwrite: bool, folder: FolderKind | None) -> None:
    if not os.path.lexists(path):
        return
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind in SPECIAL:
        to = f" to {os.readlink(path)}" if kind == stat.S_IFLNK else ""
        raise OutputError(f"{path} is {SPECIAL[kind]}{to} and is never replaced: choose another name.")
    if os.path.ismount(path):
        raise OutputError(f"{path} is a mount point and is never replaced: choose a name inside it.")
    if not path.is_dir():
        if folder is not None and overwrite:
            raise OutputError(f"{path} is a file, which a folder does not replace: choose another name.")
        if not overwrite:
            raise OutputError(f"{path} exists: choose another name, or overwrite it with `overwrite=True`.")
    elif any(path.iterdir()):
        if not overwrite:
            raise OutputError(
                f"{path} exists and is not empty: choose another name, or replace it with `overwrite=True`."
            )
        if folder is None:
            raise OutputError(f"{path} is a folder: choose another name.")
        if (stranger := folder.stranger(path)) is not None:
            raise OutputError(
                f"{path} holds other things than {folder.title} ({stranger}) and is not replaced: choose "
                "another name."
            )


def _check_place(path: Path) -> None:
    place = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not place.is_dir():
        raise OutputError(f"{path} cannot be written because {place} is a file, not a folder.")
    try:
        _probe(place)
    except PermissionError as error:
        raise OutputError(f"{path} cannot be written: no permission to write in {place}.") from error


def _probe(folder: Path) -> int:
    """The permissions that a new file gets in a folder; OSError if none can be made there."""
    probe = folder / _hidden_name(Path("probe")).name
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink()


def _hidden_name(path: Path) -> Path:
    """A free hidden name beside `path`, which says whose it is: this machine's and this process's."""
    owner = f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part"
    room = LONGEST - len(owner) - len(".") - len(".old")
    name = os.fsencode(path.name)[:room].decode(errors="ignore")
    return path.with_name(f".{name}{owner}")


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _alive(leftover: Path, found: re.Match[str]) -> bool:
    """Whether the process that writes it may still run."""
    if found["host"] != _host() or os.name == "nt":  # there is no asking
        with suppress(OSError):
            return time.time() - leftover.stat().st_mtime < ABANDONED
        return True
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _make_parents(path: Path) -> list[Path]:
    """The folders that had to be made for `path`, innermost first."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    return missing


def _put(new: Path, path: Path, overwrite: bool) -> None:
    """Gives `new` its name. A folder cannot be renamed over a full one: the old one steps aside first."""
    if new.is_dir() and path.exists():
        old = new.with_name(new.name + ".old")
        os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old, path)
            raise
        _remove(old)
    elif new.is_dir() or overwrite:
        os.replace(new, path)
    else:
        _link(new, path)


def _link(new: Path, path: Path) -> None:
    """Renames a file over nothing: what another process has put there since the last look stays."""
    try:
        os.link(new, path)
    except FileExistsError as error:
        raise OutputError(
            f"{path} exists: choose another name, or overwrite it with `overwrite=True`."
        ) from error
    except OSError:  # a file system without hard links
        os.replace(new, path)
    else:
        new.unlink()


def _open_up(path: Path) -> None:
    """Gives files the permissions that new files have here: safetensors writes for the owner's eyes only."""
    usual = _probe(path.parent)
    for part in (path, *path.rglob("*")):
        if part.is_file() and part.stat().st_mode & 0o777 == 0o600:
            part.chmod(usual)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
