"""Animated images and folders of stills through Pillow: GIF, WebP, APNG, PNG.

Pillow and libwebp merge equal neighbouring frames into one that stands longer; the tag's frame count and
`timing` bring them back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from stillmotion.errors import DataError, OutputError
from stillmotion.video.image_opening import first_frame, frames_of, open_image, upright
from stillmotion.video.metadata import KEY
from stillmotion.video.palette import Dither, to_palette
from stillmotion.video.pixels import Colour, enlarged, opaque
from stillmotion.video.stream_info import StreamInfo
from stillmotion.video.timing import delays

STILLS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
    *(".avif", ".jfif", ".jpe", ".mpo", ".jp2", ".heic", ".heif"),
)
TICKS = {"GIF": 10.0}
IMAGE_DESCRIPTION = 0x010E
FOLDER_TAG = "clip.json"


def write_gif(path: Path, frames: np.ndarray, fps: float, comment: str, scale: int, dither: Dither) -> None:
    """One palette for all frames, looping for ever; times are rounded to 10 ms without adding up."""
    if fps > 50:
        raise OutputError(
            f"GIF shows at most 50 frames per second, not {fps:g}: save as .webp or .mp4, or slow down."
        )
    indices, palette = to_palette(frames, dither)
    images = []
    for index in enlarged(indices, scale):
        images.append(Image.fromarray(index, "L"))
        images[-1].putpalette(palette.tobytes())
    _save_all(
        path,
        "GIF",
        images,
        delays(len(frames), fps, 10),
        comment=comment.encode("ascii"),
        palette=palette.tobytes(),
        optimize=False,
        interlace=0,
    )


def write_webp(path: Path, frames: np.ndarray, fps: float, comment: str, scale: int, quality: int) -> None:
    """Quality 100 is lossless; below, lossy. The tag is the EXIF image description."""
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = comment
    lossless = quality == 100
    effort = 75 if lossless else quality  # what `quality` means to libwebp depends on the mode
    images = [Image.fromarray(frame) for frame in enlarged(frames, scale)]
    durations_ms = delays(len(frames), fps, 1)
    _save_all(
        path, "WEBP", images, durations_ms, exif=exif.tobytes(), lossless=lossless, quality=effort, method=4
    )


def write_apng(path: Path, frames: np.ndarray, fps: float, comment: str, scale: int) -> None:
    """Lossless; programs that know only PNG show the first frame."""
    images = [Image.fromarray(frame) for frame in enlarged(frames, scale)]
    _save_all(path, "PNG", images, delays(len(frames), fps, 1), pnginfo=png_text(comment))


def write_folder(path: Path, frames: np.ndarray, fps: float, comment: str, scale: int) -> None:
    """0000.png, 0001.png, ..., each tagged as a still of its own, and clip.json with the tag of all."""
    path.mkdir()
    still = json.dumps({**json.loads(comment), "frames": 1})
    for number, frame in enumerate(enlarged(frames, scale)):
        Image.fromarray(frame).save(path / f"{number:04d}.png", pnginfo=png_text(still))
    (path / FOLDER_TAG).write_text(json.dumps(json.loads(comment), indent=2) + "\n", encoding="ascii")


def _save_all(
    path: Path, format: str, images: list[Image.Image], durations_ms: list[int], **options: Any
) -> None:
    images[0].save(
        path, format, save_all=True, append_images=images[1:], duration=durations_ms, loop=0, **options
    )


def png_text(comment: str) -> PngImagePlugin.PngInfo:
    """The text chunk in which a PNG carries a tag."""
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, comment)
    return info


def scan_image(path: Path) -> StreamInfo:
    """Decodes an image once, keeping nothing: what it holds, and whether all of it is readable."""
    with open_image(path) as image:
        durations_ms = []
        for _ in frames_of(image):
            image.load()  # WebP and GIF know their times only now
            durations_ms.append(float(image.info.get("duration") or 0))
        if image.format == "GIF" and len(durations_ms) > 1:
            durations_ms = [
                100.0 if duration_ms <= 10 else duration_ms for duration_ms in durations_ms
            ]  # as every browser does
        if getattr(image, "is_animated", False):
            image.seek(first_frame(image))  # of another size than the last, perhaps
        width, height = upright(image).size
        return StreamInfo(
            width, height, tuple(durations_ms), TICKS.get(image.format or "", 1.0), _comment(image)
        )


def decode_image(
    path: Path, info: StreamInfo, wanted: Sequence[int], background: Colour
) -> Iterator[tuple[int, np.ndarray]]:
    """The `wanted` stored images, which must be ascending."""
    with open_image(path) as image:
        offset = first_frame(image)
        for number in wanted:
            if number + offset:  # stills of some formats cannot seek
                image.seek(number + offset)
            yield number, opaque(upright(image), background)


def scan_folder(path: Path) -> StreamInfo:
    """A folder of stills in natural order of their names, all of one size (which decoding verifies)."""
    stills = _stills(path)
    if not stills:
        raise DataError(f"{path} has no images in it: expected {', '.join(STILLS)}.")
    with open_image(stills[0]) as image:
        width, height = upright(image).size
    tag = path / FOLDER_TAG
    comment = tag.read_text(encoding="utf-8") if tag.is_file() else None
    return StreamInfo(width, height, (0.0,) * len(stills), 1.0, comment)


def decode_folder(
    path: Path, info: StreamInfo, wanted: Sequence[int], background: Colour
) -> Iterator[tuple[int, np.ndarray]]:
    """The `wanted` stills."""
    stills = _stills(path)
    for number in wanted:
        with open_image(stills[number]) as image:
            pixels = opaque(upright(image), background)
        if pixels.shape[:2] != (info.height, info.width):
            raise DataError(
                f"{stills[number]} is {pixels.shape[1]}x{pixels.shape[0]}, but the first image there is "
                f"{info.width}x{info.height}: frames of one clip have one size."
            )
        yield number, pixels


def _stills(folder: Path) -> list[Path]:
    """frame2.png before frame10.png."""
    stills = [file for file in folder.iterdir() if file.suffix.lower() in STILLS and file.name[0] != "."]
    return sorted(stills, key=lambda file: [int(part) if part.isdecimal() else part for part in _parts(file)])


def _parts(file: Path) -> list[str]:
    return re.split(r"(\d+)", file.name)


def _comment(image: Image.Image) -> str | bytes | None:
    if image.format == "WEBP":
        return image.getexif().get(IMAGE_DESCRIPTION)
    return image.info.get("comment") or image.info.get(KEY)
