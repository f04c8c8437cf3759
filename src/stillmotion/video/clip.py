"""Clip: pixels, a rate and the request they came from."""

from __future__ import annotations

import operator
import os
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import SupportsIndex, overload

import numpy as np
from PIL import Image

from stillmotion.request import Request
from stillmotion.request.model_files import ModelFile
from stillmotion.video.contact_sheet import contact_sheet, tile
from stillmotion.video.metadata import Tag
from stillmotion.video.palette import Dither
from stillmotion.video.pixels import WHITE, Colour
from stillmotion.video.readers import open_frames
from stillmotion.video.writers import Options, save


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """Frames (F, H, W, 3) uint8 at `fps` frames per second, and how they were made.

    `requests` are those of clips that are side by side; `files` are records of the models that were used.
    """

    frames: np.ndarray
    fps: float
    request: Request | None = None
    requests: tuple[Request, ...] = ()
    files: tuple[ModelFile, ...] = ()

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
            raise ValueError(
                f"A clip is uint8 of shape (frames, height, width, 3), not {self.frames.dtype} {shape}."
            )
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}, but must be above 0.")

    @classmethod
    def from_pil(cls, images: Sequence[Image.Image], fps: float, request: Request | None = None) -> Clip:
        """A clip of images of one size, such as a diffusers pipeline returns.

        Args:
            images: the frames in order.
            fps: frames per second.
            request: how they were made, which files of the clip will carry.
        """
        return cls(np.stack([np.asarray(image.convert("RGB")) for image in images]), fps, request)

    @classmethod
    def load(cls, path: str | os.PathLike[str], background: Colour = WHITE) -> Clip:
        """Any GIF, WebP, APNG, video or folder of stills; with its request if it is one of ours.

        Raises `DataError` that names the file and the reason. Transparent parts show `background`.
        """
        source = open_frames(path, background)
        return cls(source.frames(), source.fps, source.request, source.requests, source.files)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Image.Image]:
        return (Image.fromarray(frame) for frame in self.frames)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Clip: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Image.Image | Clip:
        """A frame as a PIL image, or a part as a Clip of the same rate and request; pixels are in `frames`.

        IndexError outside the clip; ValueError for a part without frames.
        """
        if isinstance(index, slice):
            return replace(self, frames=self.frames[index])
        return Image.fromarray(self.frames[operator.index(index)])

    def __repr__(self) -> str:
        """One line: no pixels."""
        prompt = f", {self.request.prompt[:60]!r}" if self.request else ""
        return f"Clip({len(self)} frames of {self.width}x{self.height} at {self.fps:g} fps{prompt})"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What a notebook shows: the moving clip (a lossless WebP) and the settings it was made with."""
        with TemporaryDirectory() as folder:
            file = self.save(Path(folder) / "clip.webp", quality=100)
            data = b64encode(file.read_bytes()).decode("ascii")
        settings = self.request.model_dump(exclude_unset=True, exclude_none=True) if self.request else {}
        text = escape(", ".join(f"{name}: {value}" for name, value in settings.items()) or repr(self))
        image = f'<img src="data:image/webp;base64,{data}" width="{self.width}" height="{self.height}">'
        html = f"<figure>{image}<figcaption>{text}</figcaption></figure>"
        return {"text/plain": repr(self), "text/html": html}

    @property
    def width(self) -> int:
        return self.frames.shape[2]

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self) / self.fps

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        scale: int = 1,
        dither: Dither | bool = "none",
        quality: int = 90,
        overwrite: bool = False,
    ) -> Path:
        """Writes .gif, .webp, .apng, .mp4, .webm, a still .png, or a folder of PNGs (no extension).

        The file carries the request and appears whole or not at all. Returns its path.

        Args:
            path: the extension decides what is written.
            scale: enlarges crisply, so many times.
            dither: for GIF: "ordered", or "floyd-steinberg", which True means.
            quality: for video and WebP, 1 to 100; in WebP 100 is lossless.
            overwrite: whether a file that is there is replaced.

        OutputError where it cannot be written.
        """
        if isinstance(dither, bool):
            dither = "floyd-steinberg" if dither else "none"
        return save(path, self.frames, self.tag(), Options(scale, dither, quality), overwrite)

    def tag(self) -> Tag:
        """What a file with these frames says about itself."""
        return Tag(len(self), self.fps, self.width, self.height, self.request, self.requests, self.files)

    def to_pil(self) -> list[Image.Image]:
        """The frames as PIL images."""
        return [Image.fromarray(frame) for frame in self.frames]

    def sheet(
        self,
        columns: int | None = None,
        scale: float = 1.0,
        numbers: bool = False,
        caption: str = "",
        gap: int = 4,
        background: Colour = WHITE,
    ) -> Image.Image:
        """All frames on one image.

        Args:
            columns: frames in a row; nearly square by default.
            scale: enlarges crisply, reduces smoothly.
            numbers: whether each frame has its number.
            caption: text below.
            gap: pixels between frames.
            background: colour of the gaps.
        """
        return contact_sheet(self.frames, columns, scale, numbers, caption, gap, background)


def grid(clips: Sequence[Clip], columns: int | None = None, gap: int = 4, background: Colour = WHITE) -> Clip:
    """Clips of one size and rate side by side; shorter ones start again.

    Carries the request of the first as `request`, those of all as `requests`.

    Args:
        clips: at least one.
        columns: clips in a row; nearly square by default.
        gap: pixels between clips.
        background: colour of the gaps.
    """
    kinds = {(clip.width, clip.height, clip.fps) for clip in clips}
    if len(kinds) != 1:
        raise ValueError(f"A grid takes clips of one size and rate, not {sorted(kinds)}.")
    frames = [
        tile([clip.frames[number % len(clip)] for clip in clips], columns, gap, background)
        for number in range(max(map(len, clips)))
    ]
    requests = [each for clip in clips for each in (clip.requests or (clip.request,)) if each is not None]
    files = tuple(dict.fromkeys(file for clip in clips for file in clip.files))
    return Clip(np.stack(frames), clips[0].fps, clips[0].request, tuple(requests), files)
