"""Foreign bytes become checked data: JSON, YAML and text that somebody else wrote, read within bounds.

Every function raises ValueError with a reason that completes "FILE cannot be used: REASON"; the caller, who
knows the file, makes the error for the user of it. What is returned is plain data: nested at most `DEPTH`
deep, all numbers finite, no key twice, no object shared so often that it grows when it is walked.

`printable` is for the other direction: text of unknown origin on its way to a terminal.
"""

from __future__ import annotations

import json
import math
import os
import stat
import unicodedata
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

DEPTH = 64
"""Lists and objects inside one another."""
BYTES = 64 * 2**20
"""Of one JSON text; the headers of the largest weights have a few MB."""
YAML_BYTES = 256 * 2**10
"""Of one YAML text, which is read slowly (about 100 KB/s)."""
YAML_NODES = 20_000
"""Values of a YAML text with every alias written out."""
LARGEST = 10**100
"""Bound of whole numbers: far above any in use (tokenizers write 10**30), and still a finite float."""

_JOINERS = frozenset("\u200c\u200d") | {chr(code) for code in range(0xE0020, 0xE0080)}
"""Format characters that emoji and scripts are spelled with."""


def parse_json(text: str | bytes, limit: int = BYTES) -> Any:
    """The value of a JSON text of at most `limit` bytes or characters; ValueError says what is wrong."""
    if len(text) > limit:
        raise ValueError(f"it has {len(text):,} bytes, but at most {limit:,} are read")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_int=_int, parse_float=_float
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from None
    return _checked(value)


def parse_yaml(text: str, limit: int = YAML_BYTES) -> Any:
    """The value of a YAML text; aliases may be used, as far as the whole written out stays small."""
    import yaml

    if len(text) > limit:
        raise ValueError(f"it has {len(text):,} characters, but at most {limit:,} are read")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {})
        value = loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML ({' '.join(str(error).split())})") from None
    return _checked(value)


def read_text(path: str | os.PathLike[str], limit: int = BYTES) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    ValueError for what is no regular file (a pipe would wait for ever), is longer than `limit` bytes or is
    no UTF-8; OSError as the system says it.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from None


def read_json(path: str | os.PathLike[str], limit: int = BYTES) -> Any:
    """`parse_json` of `read_text`."""
    return parse_json(read_text(path, limit), limit)


def read_yaml(path: str | os.PathLike[str], limit: int = YAML_BYTES) -> Any:
    """`parse_yaml` of `read_text`."""
    return parse_yaml(read_text(path, limit), limit)


def printable(text: str) -> str:
    r"""The text with everything that steers a terminal shown as an escape: ESC as \x1b, U+202E as \u202e.

    Control characters except newline and tab, bidirectional and other format characters, line separators,
    halves of surrogate pairs. The joiners that emoji and some scripts are spelled with stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _harmless(char) else _escape(char) for char in text)


def _harmless(char: str) -> bool:
    if char in "\n\t" or char in _JOINERS:
        return True
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _no_key_twice(key for key, _ in pairs)
    return found


def _no_key_twice(keys: Iterable[Hashable]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {_short(key)} stands in it twice")
        seen.add(key)


def _no_number(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is not a number")


def _int(text: str) -> int:
    if len(text) > len(str(LARGEST)):
        raise ValueError(f"it holds the number {_short(text)}, which is too large")
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it holds the number {_short(text)}, which is too large")
    return number


def _checked(value: Any) -> Any:
    """The value, once all of it is known to be shallow, with finite numbers of sane size."""
    waiting = [(value, 0)]
    while waiting:
        here, depth = waiting.pop()
        if isinstance(here, (int, float)) and not abs(here) <= LARGEST:
            what = f"the number {here}" if isinstance(here, float) else "a number that is too large"
            raise ValueError(f"it holds {what}; numbers must be finite and below 1e100")
        inside = (*here.keys(), *here.values()) if isinstance(here, dict) else here
        if isinstance(here, (dict, list, tuple, set)):
            if depth == DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep")
            waiting += [(each, depth + 1) for each in inside]
    return value


def _written_out(node: Any, sizes: dict[int, int]) -> int:
    """How many values a YAML node stands for when its aliases are written out."""
    known = sizes.get(id(node))
    if known == 0:
        raise ValueError("it contains itself by an alias")
    if known is not None:
        return known
    sizes[id(node)] = 0
    size = 1
    if isinstance(node.value, list):
        pairs = [item if isinstance(item, tuple) else (item,) for item in node.value]
        keys = [pair[0] for pair in pairs if len(pair) == 2 and isinstance(pair[0].value, str)]
        _no_key_twice(key.value for key in keys if not key.tag.endswith(":merge"))
        for inner in (node for pair in pairs for node in pair):
            size += _written_out(inner, sizes)
            if size > YAML_NODES:
                raise ValueError(f"written out it has more than {YAML_NODES:,} values")
    sizes[id(node)] = size
    return size


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
