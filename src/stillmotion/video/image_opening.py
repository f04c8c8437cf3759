"""Images as Pillow opens them: which formats, the right way up, which of several in a file are frames.

A photo (MPO) keeps previews and gain maps behind its image, and a TIFF smaller copies: only images of the
first one's size are frames, and an MPO has one. What takes longer than any clip needs is refused unread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from stillmotion.errors import DataError

FORMATS = ("GIF", "WEBP", "PNG", "JPEG", "MPO", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "HEIF")
MOST_IMAGES = 20_000
"""in one file"""
MOST_PIXELS = 2**31
"""of all images in one file: 1,000 of 1920x1080"""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""what sets an image upright again, for each orientation of EXIF"""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")


def open_image(path: Path) -> Image.Image:
    """An image in any of our formats. Raises Pillow's errors, and DataError if more software is needed."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(JXL_STARTS):
        raise DataError(f"{path} is JPEG XL, which is not read here: save it as PNG or JPEG.")
    heic = head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS
    if heic and not find_spec("pillow_heif"):
        raise DataError(f"{path} is HEIC: `pip install pillow-heif`, or save it as JPEG.")
    if heic:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]

        pillow_heif.register_heif_opener()
        _formats.cache_clear()
    return Image.open(path, formats=_formats())


def upright(image: Image.Image) -> Image.Image:
    """As it was held; a broken EXIF is taken for none, as in every viewer."""
    image.load()
    turn = None
    with suppress(OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def frames_of(image: Image.Image) -> Iterator[int]:
    """Seeks one frame after the other; gives how many places each is behind `first_frame`.

    Raises DataError if they are too many or too large to be a clip.
    """
    first, size, pixels = first_frame(image), None, 0
    for number in range(MOST_IMAGES + 1):
        if number or first:
            if not _several(image):
                return
            try:
                image.seek(number + first)
            except EOFError:
                return
        size = size or image.size
        pixels += size[0] * size[1]
        if image.size != size and image.format == "TIFF":
            return
        if number == MOST_IMAGES or pixels > MOST_PIXELS:
            what = f"more than {number} images of {size[0]}x{size[1]} pixels in it"
            name = getattr(image, "filename", "The image")
            raise DataError(f"{name} has {what}, which is too much for a clip: make it a video.")
        yield number


def first_frame(image: Image.Image) -> int:
    """1 for an APNG whose first image is only for programs that cannot animate."""
    return int(bool(getattr(image, "default_image", False)) and getattr(image, "n_frames", 1) > 1)


def _several(image: Image.Image) -> bool:
    return image.format != "MPO" and getattr(image, "is_animated", False)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
