"""Messages name arguments in Python and flags on the command line, by one mechanism."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stillmotion
from stillmotion.cli.output import in_flags
from stillmotion.errors import StillmotionError
from stillmotion.request import Request

FIELDS = {
    "frames": 0,
    "width": 3,
    "scheduler": "unpic",
    "seed": -1,
    "loras": {"a": "x"},
    "embeddings": {"a": 3},
    "dtype": "float",
    "base": 3,
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give `frames=16`.", "give --frames 16."),
        ("give `scheduler='unipc'`.", "give --scheduler unipc."),
        ("give `width=` and `fps=`.", "give --width and --fps."),
        ("with `motion=FILE`, or `motion='none'`", "with --motion FILE, or --motion none"),
        ("`loras={'style.safetensors': 0.8}`", "--lora style.safetensors=0.8"),
        ("`embeddings={'easy.pt': ''}`", "--embedding easy.pt"),
        ("or `overwrite=True`.", "or --force."),
        ("`stillmotion decode x` and `other=1`, seed=3", "`stillmotion decode x` and `other=1`, seed=3"),
    ],
)
def test_arguments_become_flags(text: str, shown: str) -> None:
    assert in_flags(text) == shown


@pytest.mark.parametrize("name", FIELDS)
def test_errors_of_fields_name_what_the_user_can_type(name: str) -> None:
    with pytest.raises(StillmotionError) as caught:
        Request.parse(prompt="x", **{name: FIELDS[name]})
    flag = next(flag.names[0] for flag in Request.flags() if flag.field == name)
    assert f"`{name}=" in str(caught.value) and "--" not in str(caught.value)
    assert f"{flag} " in in_flags(str(caught.value)) and "`" not in in_flags(str(caught.value))


def test_no_message_of_the_library_names_a_flag() -> None:
    """Training is left out: its fields are those of a config file, and its log is read beside the command."""
    home = Path(stillmotion.__file__).parent
    rooms = ("request", "diffusion", "video", "attachments", "motion", "sampling", "lora")
    files = [home / "atomic.py", *(file for room in rooms for file in (home / room).rglob("*.py"))]
    found = {
        f"{file.name}: {line.strip()}"
        for file in files
        for line in file.read_text("utf-8").splitlines()
        if re.search(r'f?"[^"]* \(?--[a-z]', line)
    }
    assert not found, found
