"""What lies in a file of moving images, found before decoding it for good."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamInfo:
    """Size in pixels, how long each stored image stands, and the comment that may be our tag."""

    width: int
    height: int
    durations_ms: tuple[float, ...]
    """milliseconds of each stored image; 0 where the file does not say"""
    tick: float
    """milliseconds to which the format rounds times"""
    comment: str | bytes | None = None
    timestamps: tuple[int, ...] = ()
    """time stamps of a video's frames in its own unit, where it has them: needed for seeking"""
