"""Text files that other programs wrote: their encoding is found, never guessed.

byte order mark     UTF-8, UTF-16, UTF-32
zero bytes          UTF-16 without a mark
valid UTF-8         UTF-8
anything else       a DataError that names the file: Windows-1252, Shift-JIS, ... differ in meaning only
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from stillmotion.errors import DataError

LONGEST_CAPTION = 2**20
"""bytes of a file beside a clip; text encoders read 77 tokens"""

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
HEAD = 2**16
ZEROS = 10
"""One zero byte in so many is UTF-16 (in Latin letters one in two, a lone one is damage)."""


def encoding_of(path: Path) -> str:
    """The encoding of a text file by its first bytes, as Python names it. Raises DataError for a pipe."""
    if not path.is_file():  # a pipe would wait for ever
        raise DataError(f"{path} is no regular file.")
    with path.open("rb") as file:
        head = file.read(HEAD)
        for mark, encoding in MARKS:
            if head.startswith(mark):
                return encoding
        if head.count(0) * ZEROS > len(head):
            return "utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be"
    return "utf-8"


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends: LF, CR LF or CR; U+2028 and its like are characters.

    Raises DataError if the text cannot be decoded.
    """
    try:
        with path.open(encoding=encoding_of(path)) as file:
            for line in file:
                if "\0" in line:
                    raise DataError(f"{path} is no text: it has zero bytes in it.")
                yield line.removesuffix("\n")
    except UnicodeError as error:
        raise DataError(
            f"{path} is neither UTF-8 nor UTF-16 (perhaps in a code page of Windows): save it as UTF-8."
        ) from error


def caption_lines(path: Path) -> list[str]:
    """The captions in a small text file: its lines that say anything. Raises DataError."""
    if path.stat().st_size > LONGEST_CAPTION:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, which is no caption.")
    return [caption for line in lines(path) if (caption := cleaned(line))]


def cleaned(caption: str) -> str:
    """A caption on one line, composed (NFC), without control characters and halves of surrogate pairs."""
    whole = caption.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFC", UNSEEN.sub(" ", whole)).strip()
