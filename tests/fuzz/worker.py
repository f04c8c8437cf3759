"""A process that tries inputs, so that a crash, a hang or a memory that is used up is counted and not fatal.

An input is a target's name and a number; the same two give the same bytes. Outcomes: `accepted`, `sentence`
(one StillmotionError), `other` (any other exception, with its place), `hang`, `memory`, `crash`, `code` (a
program was started, a file written elsewhere or a secret read).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20
MEMORY = 2**30
CALLS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn")
CALLS += ("socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "shutil.rmtree", "os.remove", "os.rename")
CALLS += ("os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
SECRETS = ("/etc/passwd", "/etc/shadow")


@dataclass(frozen=True)
class Outcome:
    """What became of one input; `what` is the sentence, or where the exception came from."""

    kind: str
    what: str = ""
    seconds: float = 0.0
    memory: int = 0


class Worker:
    """One process forked from this one at a time; `seeds` is a folder that seeds.make filled."""

    def __init__(self, seeds: Path) -> None:
        self.seeds = seeds
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.process: Any = None

    def try_input(self, target: str, number: int) -> Outcome:
        """The outcome of an input, whatever happens to the process."""
        if self.process is None:
            self._start()
        self.pipe.send((target, number))
        if not self.pipe.poll(SECONDS + 10):
            self.close()
            return Outcome("hang", "killed", SECONDS + 10)
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            return Outcome("crash", f"exit code {code}")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, self.seeds, self.folder), daemon=True)
        self.process.start()
        other.close()


def _work(pipe: Any, seeds: Path, folder: Path) -> None:
    from targets import TARGETS

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere:  # what libraries print from C
        os.dup2(nowhere.fileno(), 2)
    os.environ.update(TMPDIR=str(folder), HOME=str(folder), XDG_STATE_HOME=str(folder))
    tempfile.tempdir = str(folder)
    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 6 * MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, too_late)
    seen = Watch(folder)
    sys.addaudithook(seen)
    while True:
        try:
            name, number = pipe.recv()
        except EOFError:
            return
        target = TARGETS[name]
        root = folder / target.folder
        with seen.paused():
            file = _prepared(target, name, number, seeds, root)
        pipe.send(tried(lambda: target.read(root, file), seen))  # noqa: B023
        with seen.paused():
            shutil.rmtree(root)


def _prepared(target: Any, name: str, number: int, seeds: Path, root: Path) -> Path:
    """The seeds of a target with one file changed, or something else in its place."""
    from mutate import mutated

    rng = random.Random(f"{name} {number}")
    shutil.copytree(seeds / target.folder, root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    file = rng.choice([path for path in files if target.takes is None or target.takes(path)])
    if number == 0:
        return file  # the seeds themselves
    good = file.read_bytes()
    if rng.random() < 0.04:
        _replaced(file, rng.randrange(7))
    else:
        file.write_bytes(mutated(file.name, good, rng))
    return file


def _replaced(file: Path, kind: int) -> None:
    """Something that is no regular file with content."""
    file.unlink()
    if kind == 1:
        file.touch()
    elif kind == 2:
        file.mkdir()
    elif kind == 3:
        os.mkfifo(file)
    elif kind == 4:
        file.symlink_to(file.name)  # a loop
    elif kind == 5:
        file.symlink_to("/etc/passwd")
    elif kind == 6:
        file.write_bytes(b"<!DOCTYPE html><html>404</html>")


class _Late(BaseException):
    """Not caught by anything that catches exceptions."""


def too_late(*_: object) -> None:
    raise _Late


def tried(read: Callable[[], object], seen: Watch) -> Outcome:
    from stillmotion.errors import StillmotionError

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, began = _peak(), time.monotonic()
    seen.faults.clear()
    signal.alarm(SECONDS)
    kind, what = "accepted", ""
    try:
        read()
    except StillmotionError as error:
        kind, what = "sentence", str(error)
        if not what.strip() or len(what) > 2000 or what.count("\n") > 3:
            kind, what = "other", f"a message of {len(what)} characters: {what[:100]!r}"
    except _Late:
        kind, what = "hang", _place(sys.exc_info()[1])
    except BaseException as error:
        kind, what = "other", f"{type(error).__name__} {_place(error)}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    grown = _peak() - before
    if seen.faults:
        kind, what = "code", "; ".join(seen.faults[:3])
    elif grown > MEMORY:
        kind, what = "memory", f"{grown >> 20} MiB; {kind} {what[:100]}"
    return Outcome(kind, what, time.monotonic() - began, grown)


def _place(error: BaseException | None) -> str:
    """The last line of our own code that an exception went through."""
    lines = list(traceback.extract_tb(error.__traceback__ if error else None))
    last = ([line for line in lines if "/stillmotion/" in line.filename] or lines)[-1]
    return f"{last.filename.rpartition('/stillmotion/')[2]}:{last.lineno} {last.name}"


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


class Watch:
    """An audit hook that notes what no reader does: programs started, files written or removed elsewhere."""

    def __init__(self, folder: Path) -> None:
        sys.dont_write_bytecode = True  # modules imported late would write their .pyc elsewhere
        self.folder, self.faults, self.off = str(folder), [], False

    def paused(self) -> Watch:
        return self

    def __enter__(self) -> None:
        self.off = True

    def __exit__(self, *_: object) -> None:
        self.off = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.off or event not in ("open", *CALLS):
            return
        path = args[0] if args and isinstance(args[0], (str, bytes)) else ""
        path = os.path.abspath(os.fsdecode(path)) if path else ""
        if event == "open":
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            writes = flags & WRITES & ~os.O_CLOEXEC
            secret = path in SECRETS
            if not secret and (not writes or path.startswith((self.folder, "/dev/", "/proc/")) or not path):
                return
        elif event.startswith(("os.remove", "os.rename", "os.mk", "os.rm", "shutil", "os.chmod", "os.trunc")):
            if path.startswith(self.folder) or not path:
                return
        elif event == "ctypes.dlopen":
            return
        self.faults.append(f"{event} {args!r:.150}")
