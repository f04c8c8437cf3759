"""When a run ends before its last step: a signal or the clock. The loop asks between steps: none is cut."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType


class Stop:
    """Ctrl-C and SIGTERM become a wish; a second Ctrl-C interrupts at once. Use as a context manager."""

    def __init__(self, max_minutes: float | None) -> None:
        self.until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = False
        self._previous: dict[signal.Signals, object] = {}

    @property
    def wanted(self) -> bool:
        return self.signalled or (self.until is not None and time.monotonic() >= self.until)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = True

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._wish)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
