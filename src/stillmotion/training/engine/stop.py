"""When a run ends before its last step: a signal or the clock. The loop asks between steps: none is cut."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(BaseException):
    """The first signal came within `Stop.interruptible`; no Exception, so that no library swallows it."""


class Stop:
    """The first signal is a request to end after the step, and is said at once; the second ends at once.

    Ctrl-C, SIGTERM, and SIGHUP of a terminal that goes away (unless it is ignored, as under nohup). Use as a
    context manager.
    """

    def __init__(self, max_minutes: float | None, speaks: bool = True) -> None:
        self.until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signal: int | None = None
        self._speaks, self._interruptible = speaks, False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None or (self.until is not None and time.monotonic() >= self.until)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """For work that may be left out, such as samples: the first signal ends the block."""
        self._interruptible = True
        try:
            yield
        except Interrupted:
            pass
        finally:
            self._interruptible = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if self._speaks:
            with suppress(OSError):  # no stream of Python: it may be in the middle of a write
                os.write(2, b"\nStopping after this step; once more stops at once.\n")
        if self._interruptible:
            raise Interrupted

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
