"""Completion: installed where each shell looks, and it knows flags, choices, LoRAs and files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLACES = {
    "bash": ".local/share/bash-completion/completions/stillmotion",
    "zsh": ".zfunc/_stillmotion",
    "fish": ".config/fish/completions/stillmotion.fish",
}


@pytest.mark.parametrize("shell", PLACES)
def test_the_script_lies_where_the_shell_looks(say, shell, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    for flags in ((), (shell,)):
        said = say("--install-completion", *flags)
        assert said.code == 0, said.err
        assert PLACES[shell] in said.out and "_STILLMOTION_COMPLETE" in (tmp_path / PLACES[shell]).read_text()


def test_other_shells_are_a_sentence(say, monkeypatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "bash, zsh, fish" in say("--install-completion").err
    assert say("--install-completion", "nu").code == 2


def completed(words: str) -> list[str]:
    asked = {
        "_STILLMOTION_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = "from stillmotion.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    return run.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("stillmotion ani", ["plain,animate"]),
        ("stillmotion animate x --lora zoom", ["plain,zoom-in", "plain,zoom-out"]),
        ("stillmotion animate x --scheduler uni", ["plain,unipc"]),
        ("stillmotion animate x --base emo", ["plain,emoji", "file,emo"]),
        ("stillmotion animate x --num-inf", ["plain,--num-inference-steps"]),
    ],
)
def test_what_is_completed(words: str, found: list[str]) -> None:
    assert set(found[:1]) <= set(completed(words))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_reads_the_script(say, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert say("--install-completion", "bash").code == 0
    script = next(tmp_path.rglob("stillmotion"))
    said = subprocess.run(["bash", "-c", f"source '{script}'; complete -p stillmotion"], capture_output=True)
    assert said.returncode == 0 and b"stillmotion" in said.stdout
