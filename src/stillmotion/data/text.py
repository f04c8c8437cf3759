"""Text files that other programs wrote: their encoding is found, never assumed, and never guessed in silence.

byte order mark     UTF-8, UTF-16, UTF-32
zero bytes          UTF-16 without a mark (Windows)
valid UTF-8         UTF-8
Western text        Windows-1252, which contains Latin-1
anything else       a DataError that names the file (Shift-JIS, GBK, Cyrillic code pages, binary files)
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
NOT_WESTERN = re.compile(rb"[\xc0-\xff]{3}|[\x80-\xff]{4}|\x82[\x9f-\xf1]|\x83[\x40-\x96]|\xc3[\x80-\xbf]")
"""three letters with accents in a row are Cyrillic or CJK, and the others are kana in Shift-JIS and
UTF-8 that is damaged elsewhere"""

UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
CHUNK = 2**20


def encoding_of(path: Path) -> str:
    """The encoding of a text file, as Python names it. Raises DataError if it is none of those above."""
    with path.open("rb") as file:
        head = file.read(CHUNK)
        for mark, encoding in MARKS:
            if head.startswith(mark):
                return encoding
        if 0 in head:
            return "utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be"
        decoder, odd = codecs.getincrementaldecoder("utf-8")(), False
        try:
            while head:
                decoder.decode(head)
                head = file.read(CHUNK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            file.seek(0)
            while part := file.read(CHUNK):
                odd = odd or NOT_WESTERN.search(part) is not None
    if odd:
        raise DataError(f"{path} is neither UTF-8, UTF-16 nor Western European text: save it as UTF-8.")
    return "cp1252"


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
            f"{path} cannot be decoded ({error.args[0]}: {error.args[-1]}): save it as UTF-8."
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
