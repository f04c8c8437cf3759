"""A quicker start: Python's cyclic garbage collector rests while libraries and models are loaded.

Both make some hundred thousand objects that stay, and the collector would walk all of them again and again:
a quarter of the 4.7 s of CPU time that the first `Animator.load()` took.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_was_on = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection while the block runs, in any thread; then as before the first of several."""
    global _inside, _was_on
    with _lock:
        if _inside == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _was_on:
                gc.enable()
