"""Latents of all frames of each clip, computed once and kept on disk. The VAE is given as a function.

One safetensors file per clip, fp16, named by what decides its content: the bytes of the clip, the resolution,
the VAE. So a cache can be shared by runs, moved, and built in parts: what is there is never computed twice.
It holds the means of the VAE's distribution, not samples (its spread is far below the noise of training).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stillmotion.atomic import durable
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item
from stillmotion.errors import OutputError, StillmotionError
from stillmotion.video.readers import open_frames

HASHED_BYTES = 65536
ENCODE_PIXELS = 2**20
"""pixels encoded at once: 16 frames of 256x256, 4 of 512x512"""

DECODE_BYTES = 256 * 2**20
"""bytes of decoded frames held at once: going back into a compressed clip costs more than memory"""

Encode = Callable[[Tensor], Tensor]
"""pixels (n, 3, H, W) in [-1, 1], float32 -> scaled latents (n, c, h, w)"""

Read = Callable[[Item, int, int], tuple[float, Iterator[Tensor]]]
"""item, size, images at once -> frames per second, and its pixels as `Encode` takes them, in portions"""


@dataclass(frozen=True)
class CachedClip:
    """A clip whose latents (length, c, h, w) are on disk."""

    item: Item
    file: Path
    length: int
    fps: float

    def latents(self, indices: Sequence[int]) -> Tensor:
        """(len(indices), c, h, w) fp16; reads from the memory-mapped file only the frames asked for."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor("latents")[list(indices)]


class LatentCache:
    """The latents in one folder for one VAE and one resolution; `read` gives the pixels of an item."""

    def __init__(
        self,
        folder: str | Path,
        encode: Encode,
        fingerprint: str,
        size: int,
        batch: int | None = None,
        read: Read | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.encode = encode
        self.fingerprint = fingerprint
        self.size = size
        self.batch = batch or max(1, ENCODE_PIXELS // size**2)
        self.read = read or read_clip

    def ready(self, item: Item) -> CachedClip | None:
        """The clip if its latents are on disk, else None."""
        file = self._file(item)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                length, *frame = opened.get_slice("latents").get_shape()
                if length and len(frame) == 3:
                    return CachedClip(item, file, length, float((opened.metadata() or {})["fps"]))
        except (SafetensorError, KeyError, ValueError):
            pass
        file.unlink()  # not ours or broken by the disk: it is computed again
        return None

    def build(
        self, items: Sequence[Item], report: Report, on_clip: Callable[[int], None] | None = None
    ) -> int:
        """Encodes what is missing; unreadable clips go to the report. Returns how many were encoded."""
        encoded = 0
        for number, item in enumerate(items, 1):
            latents = None
            try:
                if self.ready(item) is None:
                    latents, fps = self._encode(item)
            except (StillmotionError, OSError, ValueError, EOFError) as error:
                report.skip(item.path, reason(error, item.path))
            if latents is not None:
                self._write(item, latents, fps)
                encoded += 1
            if on_clip is not None:
                on_clip(number)
        return encoded

    def _file(self, item: Item) -> Path:
        settings = f"{self.fingerprint} {self.size}{item.variant}".encode()
        name = hashlib.blake2b(content_key(item.path) + settings, digest_size=12).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _encode(self, item: Item) -> tuple[Tensor, float]:
        fps, portions = self.read(item, self.size, self.batch)
        return torch.cat([self.encode(portion).half().cpu() for portion in portions]).contiguous(), fps

    def _write(self, item: Item, latents: Tensor, fps: float) -> None:
        """OutputError where the disk refuses: no fault of the item, so it is not left out."""
        try:
            with durable(self._file(item)) as partial:
                save_file({"latents": latents}, partial, metadata={"fps": str(fps)})
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise OutputError(
                f"Latents cannot be kept in {self.folder} ({why}): free space there, or give another --cache."
            ) from error


def read_clip(item: Item, size: int, batch: int) -> tuple[float, Iterator[Tensor]]:
    """All frames of a clip as they are."""
    source = open_frames(item.path)

    def portions() -> Iterator[Tensor]:
        held = max(batch, DECODE_BYTES // (source.height * source.width * 3))
        for first in range(0, len(source), held):
            frames = source.frames(range(first, min(first + held, len(source))))
            for start in range(0, len(frames), batch):
                yield pixels(frames[start : start + batch], size)

    return source.fps, portions()


def pixels(frames: np.ndarray, size: int | tuple[int, int]) -> Tensor:
    """uint8 frames (n, H, W, 3) -> (n, 3, *size) in [-1, 1]: resized until they cover it, then the centre.

    `size` is the side of a square, or height and width.
    """
    tall, wide = (size, size) if isinstance(size, int) else size
    stack = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = stack.shape[-2:]
    if (height, width) != (tall, wide):
        scale = max(tall / height, wide / width)
        shape = (max(tall, round(height * scale)), max(wide, round(width * scale)))
        stack = F.interpolate(stack, shape, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        top, left = (shape[0] - tall) // 2, (shape[1] - wide) // 2
        stack = stack[..., top : top + tall, left : left + wide]
    return stack.contiguous()


def content_key(path: Path) -> bytes:
    """Names a file by its size and the bytes at both ends: cheap for long videos, and true after a move."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HASHED_BYTES)
        file.seek(max(0, size - HASHED_BYTES))
        tail = file.read(HASHED_BYTES)
    return hashlib.blake2b(size.to_bytes(8, "big") + head + tail).digest()


def reason(error: Exception, path: Path) -> str:
    """The error as a short reason without the file's name, so that equal reasons are counted together."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name in (str(path), path.name):
        text = text.replace(name, "the file")
    return text[:200]
