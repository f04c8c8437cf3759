"""What lies in a file of moving pictures, found before decoding it for good. Knows no format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contents:
    """Size in pixels, how long each stored picture stands, and the comment that may be our tag."""

    width: int
    height: int
    stands: tuple[float, ...]
    """milliseconds of each stored picture; 0 where the file does not say"""
    tick: float
    """milliseconds to which the format rounds times"""
    comment: str | bytes | None = None
    marks: tuple[int, ...] = ()
    """time stamps of a video's frames in its own unit, where it has them: needed for seeking"""
