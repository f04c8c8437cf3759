"""The command line in this process: an exit code, and what was said on stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from stillmotion.cli import run


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))

    def call(*args: object) -> Said:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def bundled(emoji_folder, monkeypatch: pytest.MonkeyPatch):
    """A tiny model in the place of the bundled one."""
    monkeypatch.setattr("stillmotion.request.installed_models._folder", lambda _: emoji_folder)
    return emoji_folder
