"""Which writer a path gets, and everything that must hold before and after it writes.

A name with a known extension is a file; a name without one, or ending in a slash, is a folder of PNGs.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

import numpy as np

from stillmotion.atomic import FolderKind, check_free, refused, replacing, sweep
from stillmotion.errors import OutputError
from stillmotion.video import animated_images
from stillmotion.video.animated_images import FOLDER_TAG
from stillmotion.video.metadata import Tag
from stillmotion.video.palette import Dither

EXTENSIONS = (".gif", ".webp", ".apng", ".mp4", ".webm", ".png")
CLIP_FOLDER = FolderKind("a clip", (FOLDER_TAG,), r"\d{4,}\.png|" + re.escape(FOLDER_TAG))
"""PNGs as `write_folder` names them."""


MOST_SCALE = 64
"""Times that a clip is enlarged; larger ones would fill the memory when the long work is done."""


@dataclass(frozen=True)
class Options:
    """`scale` enlarges crisply, `dither` is for GIF, `quality` for WebP (100 is lossless) and video."""

    scale: int = 1
    dither: Dither = "none"
    quality: int = 90

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or not 1 <= self.scale <= MOST_SCALE:
            raise OutputError(
                f"scale is {self.scale}, but a clip is enlarged by a whole number: 1, 2, 3, ... {MOST_SCALE}."
            )
        if not 0 <= self.quality <= 100:
            raise OutputError(f"quality is {self.quality}, but must be between 0 and 100.")
        if self.dither not in get_args(Dither):
            raise OutputError(f"dither is {self.dither!r}, but must be one of {', '.join(get_args(Dither))}.")


def check_output(path: str | os.PathLike[str], overwrite: bool = False, frames: int | None = None) -> Path:
    """Raises the `OutputError` that saving would, to be asked before the long work; returns the path."""
    kind, target = _kind(path), Path(path)
    if f".{os.fspath(path).lower()}" in EXTENSIONS:
        raise OutputError(
            f"{path} is an extension without a name; did you mean clip.{path}? For a folder of PNGs that is "
            f"called so, give {path}/."
        )
    if kind not in (*EXTENSIONS, "folder"):
        close = get_close_matches(kind, EXTENSIONS, 1)
        hint = f"did you mean {close[0]}?" if close else "choose one of them."
        raise OutputError(
            f"{target} has the unknown extension {kind}: known are {', '.join(EXTENSIONS)} and a folder "
            f"(a name without extension); {hint}"
        )
    if kind == ".png" and frames is not None and frames > 1:
        raise OutputError(
            f"{target} is a still, but the clip has {frames} frames: use .apng, or a folder ({target.stem}/)."
        )
    if target.is_dir() and kind != "folder":
        raise OutputError(f"{target} is a folder: choose another name.")
    check_free(target, overwrite, CLIP_FOLDER if kind == "folder" else None)
    if kind in (".mp4", ".webm"):
        from stillmotion.video import ffmpeg  # brings FFmpeg along: only when needed

        ffmpeg.check_encoder(ffmpeg.CODECS[kind])
    return target


def save(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    tag: Tag,
    options: Options,
    overwrite: bool = False,
) -> Path:
    """Writes frames (F, H, W, 3) uint8 whole or not at all; returns the path. Raises `OutputError`.

    Args:
        path: a file or folder; its name decides how it is written.
        frames: the pixels.
        tag: what the file says about itself, the size being that of `frames`.
        options: how it is written.
        overwrite: whether a file may be replaced.
    """
    target = check_output(path, overwrite, len(frames))
    tag = replace(tag, width=tag.width * options.scale, height=tag.height * options.scale)
    text = tag.to_json(target.parent)
    try:
        sweep(target.parent, ours=False)
        with replacing(target, overwrite, CLIP_FOLDER if _kind(path) == "folder" else None) as unfinished:
            _write(_kind(path), unfinished, frames, tag.fps, text, options)
    except (ValueError, struct.error) as error:
        raise refused(target, error) from error
    return target


def _write(kind: str, path: Path, frames: np.ndarray, fps: float, comment: str, options: Options) -> None:
    common = (path, frames, fps, comment, options.scale)
    if kind == ".gif":
        animated_images.write_gif(*common, options.dither)
    elif kind == ".webp":
        animated_images.write_webp(*common, options.quality)
    elif kind in (".apng", ".png"):
        animated_images.write_apng(*common)
    elif kind == "folder":
        animated_images.write_folder(*common)
    else:
        from stillmotion.video import ffmpeg  # brings FFmpeg along: only when needed

        (ffmpeg.write_mp4 if kind == ".mp4" else ffmpeg.write_webm)(*common, options.quality)


def _kind(path: str | os.PathLike[str]) -> str:
    """A lower-case extension, or "folder"."""
    name = os.fspath(path)
    return "folder" if name.endswith(("/", os.sep)) or not Path(name).suffix else Path(name).suffix.lower()
