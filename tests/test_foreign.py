"""Foreign bytes: what is in bounds is read as the libraries read it, everything else is one ValueError."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from stillmotion import foreign

GOOD = [
    '{"a": [1, -2.5e3, null, true], "b": {"c": "\\u00e9"}}',
    "[" * 60 + "]" * 60,
    '{"model_max_length": 1000000000000000019884624838656}',
]

BAD = {
    '{"a": 1, "a": 2}': "'a' stands in it twice",
    "[NaN]": "NaN",
    "[-Infinity]": "Infinity",
    "[1e999]": "too large",
    "[1" + "0" * 400 + "]": "too large",
    "[1" + "0" * 5000 + "]": "too large",
    "[" * 100_000 + "]" * 100_000: "nested",
    "[" * 70 + "]" * 70: "nested",
    '{"a":' * 100_000: "nested|not JSON",
    "{": "not JSON",
}


@pytest.mark.parametrize("text", GOOD)
def test_json_in_bounds_is_what_json_says(text: str) -> None:
    assert foreign.parse_json(text) == json.loads(text) == foreign.parse_json(text.encode())


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:16])
def test_json_out_of_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=BAD[text]) as caught:
        foreign.parse_json(text)
    assert len(str(caught.value)) < 200


def test_json_of_other_encodings_and_lengths() -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        foreign.parse_json(b'"caf\xe9"')
    with pytest.raises(ValueError, match="at most 3"):
        foreign.parse_json("[1, 2]", 3)


GOOD_YAML = ["a: 1\nb: [1e-4, x]\n", "base: &b {x: 1}\nother:\n  <<: *b\n  y: 2\n", ""]
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    BOMB: "more than 20,000",
    MERGES: "more than 20,000",
    "&a [*a]": "itself",
    "a: 1\na: 2": "twice",
    "x: .nan": "finite",
    "x: .inf": "finite",
    "x: 0x" + "f" * 500: "finite",
    "x: 1" + "0" * 5000: "digits",
    "d: 2024-13-45": "month",
    "[" * 50_000: "nested|YAML",
    "[" * 100 + "]" * 100: "nested",
    "a: [": "not valid YAML",
    "a: !!python/object:os.system x": "not valid YAML",
    "a: 1\n---\nb: 2": "not valid YAML",
    "x" * 300_000: "at most",
}


@pytest.mark.parametrize("text", GOOD_YAML)
def test_yaml_in_bounds_is_what_yaml_says(text: str) -> None:
    assert foreign.parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", BAD_YAML, ids=lambda text: text[:16])
def test_yaml_out_of_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=BAD_YAML[text]):
        foreign.parse_yaml(text)


def test_text_of_files(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert foreign.read_text(file) == "café"
    with pytest.raises(ValueError, match="more than 3 bytes"):
        foreign.read_text(file, 3)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"UTF-8 \(byte 3\)"):
        foreign.read_text(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="regular"):
        foreign.read_text(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        foreign.read_text(tmp_path / "none")


@pytest.mark.parametrize("text", ["a rocket\n\tend", "été", "👩‍🚀 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️", "日本語", "می‌خواهم"])
def test_text_is_printed_as_it_is(text: str) -> None:
    assert foreign.printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b2J\x7f\r\x00", "\\x9b2J\\x7f\\x0d\\x00"),
        ("gpj.\u202eexe\u2066", "gpj.\\u202eexe\\u2066"),
        ("a\u2028b\u200f\ufeff", "a\\u2028b\\u200f\\ufeff"),
        ("caf\udce9", "caf\\udce9"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_steers_a_terminal_is_shown(text: str, shown: str) -> None:
    assert foreign.printable(text) == shown
    foreign.printable(text).encode()
