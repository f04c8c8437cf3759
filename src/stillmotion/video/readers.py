"""Frames from any file of moving images, ours or not: GIF, WebP, APNG, video, a folder of stills.

`open_frames` looks at a file once and keeps no pixels and no open file: the result is small, can be sent to
another process, and decodes only what is asked for. What a file is, its content says, not its name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stillmotion.errors import DataError
from stillmotion.request import Request
from stillmotion.request.model_files import ModelFile
from stillmotion.video import animated_images
from stillmotion.video.metadata import Tag, read_tag
from stillmotion.video.pixels import WHITE, Colour
from stillmotion.video.stream_info import StreamInfo
from stillmotion.video.timing import at_rate, constant_rate

Decode = Callable[[Path, StreamInfo, Sequence[int], Colour], Iterator[tuple[int, np.ndarray]]]
UNREADABLE = (
    OSError,
    SyntaxError,
    EOFError,
    RuntimeError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for broken files, depending on where they broke (RuntimeError: AVIF)."""
MOST_GROWN = 2**30
"""Bytes that images which stand long may grow to; beyond it each is shown once."""
FOLDER_FPS = 8.0
"""A folder of stills does not know its rate; this is AnimateDiff's."""


@dataclass(frozen=True)
class FrameSource:
    """The frames of a file at a steady rate, decoded when asked for."""

    path: Path
    fps: float
    width: int
    height: int
    request: Request | None
    info: StreamInfo
    shown: np.ndarray
    """index (frames,) of the stored image that each frame shows"""
    background: Colour
    decode: Decode
    requests: tuple[Request, ...] = ()
    """of the clips that are side by side, or whose frames are on one image"""
    files: tuple[ModelFile, ...] = ()

    def __len__(self) -> int:
        return len(self.shown)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self) / self.fps

    def frames(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """The frames at `indices` (n, in any order, repeats allowed; all if None) as (n, H, W, 3) uint8.

        Raises `DataError` if the file is damaged there, IndexError for an index outside the clip.
        """
        stored = self.shown if indices is None else self.shown[np.asarray(indices, dtype=int)]
        result = np.empty((len(stored), self.height, self.width, 3), np.uint8)
        wanted = np.unique(stored).tolist()
        with _named(self.path):
            decoded = self.decode(self.path, self.info, wanted, self.background) if wanted else ()
            for number, pixels in decoded:
                result[stored == number] = pixels[: self.height, : self.width]
        return result


def open_frames(path: str | os.PathLike[str], background: Colour = WHITE) -> FrameSource:
    """Looks at a file or a folder of stills; transparent parts will show `background`.

    Raises `DataError` that names the file and the reason if it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    info, decode = _scan(path)
    width, height, request = info.width, info.height, None
    fps, shown = constant_rate(info.durations_ms, info.tick)
    if path.is_dir():
        fps = FOLDER_FPS
    tag = read_tag(info.comment, path.parent)
    if tag is not None:
        request = tag.request
        width -= width - tag.width == 1  # padded for the codec
        height -= height - tag.height == 1
        if (tagged := _as_tagged(info, tag)) is not None:
            fps, shown = tag.fps, tagged
    if _grown(shown, info):
        stored = len(info.durations_ms)
        fps, shown = stored * fps / len(shown), np.arange(stored)
    requests, files = (tag.requests, tag.files) if tag is not None else ((), ())
    return FrameSource(path, fps, width, height, request, info, shown, background, decode, requests, files)


def read_frames(path: str | os.PathLike[str], background: Colour = WHITE) -> tuple[np.ndarray, float]:
    """All frames (F, H, W, 3) uint8 of a file or folder, and their rate. Raises `DataError`."""
    source = open_frames(path, background)
    return source.frames(), source.fps


def _grown(shown: np.ndarray, info: StreamInfo) -> bool:
    """Whether a few stored images claim to stand so long that showing them would fill the memory."""
    size = len(shown) * info.width * info.height * 3
    return len(shown) > 64 * len(info.durations_ms) and size > MOST_GROWN


def _as_tagged(info: StreamInfo, tag: Tag) -> np.ndarray | None:
    """Which stored image each frame shows, or None if the file no longer is what its tag says."""
    if any(info.durations_ms):
        return at_rate(info.durations_ms, tag.fps, tag.frames)
    if len(info.durations_ms) == 1:  # all frames were equal, and merged into a still
        return np.zeros(tag.frames, dtype=int)
    return np.arange(tag.frames) if len(info.durations_ms) == tag.frames else None


def _scan(path: Path) -> tuple[StreamInfo, Decode]:
    with _named(path):
        if path.is_dir():
            return animated_images.scan_folder(path), animated_images.decode_folder
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty.")
        try:
            return animated_images.scan_image(path), animated_images.decode_image
        except UnidentifiedImageError:
            from stillmotion.video import ffmpeg  # brings FFmpeg along: only when needed

            return ffmpeg.scan_video(path), ffmpeg.decode_video


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what the libraries raise for broken files into a `DataError` that names the file."""
    try:
        yield
    except UNREADABLE as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}.") from error
