"""What users of other programs type is understood or answered; what a file manager drops is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillmotion.cli.hints import dropped
from stillmotion.cli.options import given


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("animate", "--cfg", "--guidance-scale"),
        ("animate", "--num_frames", "--frames"),
        ("animate", "--size", "--width --height"),
        ("animate", "--sampler", "--scheduler"),
        ("train lora", "--lr", "--learning-rate"),
        ("train lora", "--epochs", "--max-train-steps"),
        ("train lora", "--network-dim", "--rank"),
    ],
)
def test_flags_of_other_programs(say, command: str, typed: str, meant: str) -> None:
    said = say(*command.split(), *(["x"] if command == "animate" else []), typed, 1)
    assert said.code == 2 and f"There is no option {typed}; did you mean {meant}" in said.err


@pytest.mark.parametrize(
    "prompt", ["rocket.png", "a/rocket.GIF", "'x.mp4'", "notes", "x.safetensors", "a b.webm"]
)
def test_a_file_is_no_prompt(say, tmp_path: Path, prompt: str) -> None:
    (tmp_path / "notes").write_text("a rocket")
    said = say("animate", prompt)
    assert said.code == 2 and "file, but animate takes a prompt" in said.err and "stillmotion" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize("name", ["a b.gif", "ü#1.gif"])
def test_what_is_dropped_is_a_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for text in (str(path), f"'{path}'", f'"{path}"', path.as_uri(), f"'{path.as_uri()}'"):
        assert dropped(text) == str(path)
    assert given({"loras": [f"{path.as_uri()}=0.5", f"'{path}'"], "base": f"'{path}'", "seed": "-1"}) == {
        "loras": [f"{path}=0.5", str(path)],
        "base": str(path),
        "seed": None,
    }


def test_quotes_that_are_in_the_name_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "'x'").touch()
    assert dropped("'x'") == "'x'"


def test_an_extension_alone_asks_back(say, tmp_path: Path) -> None:
    said = say("animate", "a rocket", "-o", "mp4")
    assert said.code == 2 and "did you mean clip.mp4?" in said.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_short_help_is_help(say, flag: str) -> None:
    assert say("animate", flag).code == 0 and say(flag).code == 0
    assert say("-V").out == say("--version").out
