"""Clips side by side: frames on a contact sheet, and several clips as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stillmotion.video.pixels import WHITE, Colour

BLACK: Colour = (0, 0, 0)


def tile(images: Sequence[np.ndarray], columns: int | None, gap: int, background: Colour) -> np.ndarray:
    """Images (H, W, 3) of one size in rows, nearly square without `columns`; the rest is background."""
    height, width = images[0].shape[:2]
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    canvas = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    canvas[:] = background
    for place, image in enumerate(images):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def contact_sheet(
    frames: np.ndarray,
    columns: int | None = None,
    scale: float = 1.0,
    numbers: bool = False,
    caption: str = "",
    gap: int = 4,
    background: Colour = WHITE,
) -> Image.Image:
    """Frames (F, H, W, 3) on one image, optionally numbered from 0, with a caption above."""
    size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
    filter = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    cells = [Image.fromarray(frame).resize(size, filter) for frame in frames]
    if numbers:
        for number, cell in enumerate(cells):
            _write(cell, (2, 1), str(number), max(8, min(14, size[1] // 8)))
    sheet = Image.fromarray(tile([np.asarray(cell) for cell in cells], columns, gap, background))
    return _captioned(sheet, caption, background) if caption else sheet


def labelled_sheet(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    gap: int = 4,
    background: Colour = WHITE,
) -> Image.Image:
    """Rows of images under a title, with a name above each column; what is too long for its place is cut.

    Args:
        title: of the whole sheet.
        columns: a name for each image of a row.
        rows: a label and images (H, W, 3) uint8; all images have one size, all rows the same count.
        gap: pixels between images.
        background: of the sheet; the text is black on light ones, else white.
    """
    height, width = rows[0][1][0].shape[:2]
    size = max(12, min(24, height // 10))
    font, line, ink = ImageFont.load_default(size), size + 6, BLACK if sum(background) > 382 else WHITE
    lefts = [number * (width + gap) for number in range(len(columns))]
    whole = lefts[-1] + width
    sheet = Image.new("RGB", (whole, 2 * line + len(rows) * (line + height + gap) - gap), background)
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str, room: int) -> None:
        fits = [text, *(f"{text[:end]}..." for end in range(len(text) - 1, 0, -1)), ""]
        shown = next(each for each in fits if draw.textlength(each, font=font) <= room - 2)
        draw.text((left + 2, top + 1), shown, fill=ink, font=font)

    write(0, 0, title, whole)
    for left, name in zip(lefts, columns, strict=True):
        write(left, line, name, width)
    for number, (label, images) in enumerate(rows):
        top = 2 * line + number * (line + height + gap)
        write(0, top, label, whole)
        for left, image in zip(lefts, images, strict=True):
            sheet.paste(Image.fromarray(image), (left, top + line))
    return sheet


def _write(image: Image.Image, place: tuple[int, int], text: str, size: int) -> None:
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(place, text, fill=WHITE, font=font, stroke_width=1, stroke_fill=BLACK)


def _captioned(sheet: Image.Image, caption: str, background: Colour) -> Image.Image:
    font = ImageFont.load_default(13)
    per_letter = max(1.0, font.getlength(caption) / len(caption))
    lines = wrap(caption, max(8, int((sheet.width - 8) / per_letter)))
    above = 18 * len(lines) + 6
    whole = Image.new("RGB", (sheet.width, sheet.height + above), background)
    whole.paste(sheet, (0, above))
    ink = BLACK if sum(background) > 382 else WHITE
    ImageDraw.Draw(whole).multiline_text((4, 3), "\n".join(lines), fill=ink, font=font, spacing=4)
    return whole
