"""What `make` does before there is an environment: the wrong Python, half an environment, others' folders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "install"

FAKE = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") if [ -e broken ]; then kill -9 $$; fi; echo "$*" > pip.txt ;;
*) echo {version} ;;
esac
"""


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"

    def python(self, name: str, version: str) -> None:
        (self.folder / name).write_text(FAKE.format(version=version))
        (self.folder / name).chmod(0o755)

    def install(self, python: str = "./python", stamp: str = "installed") -> tuple[int, str]:
        done = subprocess.run(
            ["sh", SCRIPT, python, ".venv", stamp, "-e", "."],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{self.folder}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.python("python", "3.12")
    return made


def test_a_good_python_makes_an_environment_and_fills_it(place: Place) -> None:
    code, said = place.install()
    assert code == 0 and "1.5 GB" in said and (place.venv / "installed").is_file()
    assert (place.folder / "pip.txt").read_text().split()[-4:] == ["-c", "constraints.txt", "-e", "."]


@pytest.mark.parametrize("version", ["3.9", "3.14", "2.7"])
def test_other_pythons_are_refused_and_leave_nothing(place: Place, version: str) -> None:
    place.python("other", version)
    place.python("python3.11", "3.11")
    code, said = place.install("./other")
    assert code == 2 and f"./other is Python {version}, but stillmotion needs Python 3.10 to 3.13" in said
    assert "PYTHON=python3.11" in said and not place.venv.exists()


def test_a_python_that_is_not_there(place: Place) -> None:
    code, said = place.install("nopython")
    assert code == 2 and "there is no nopython that runs" in said and not place.venv.exists()


def test_an_installation_that_was_killed_is_made_anew(place: Place) -> None:
    (place.folder / "broken").touch()
    code, _ = place.install()
    assert code != 0 and not (place.venv / "installed").exists()
    (place.venv / "half").touch()
    (place.folder / "broken").unlink()
    code, said = place.install()
    assert code == 0 and "made anew" in said
    assert (place.venv / "installed").is_file() and not (place.venv / "half").exists()
    (place.venv / "kept").touch()
    assert place.install(stamp="installed-dev")[0] == 0 and (place.venv / "kept").exists()


def test_an_environment_of_others_is_used_and_never_removed(place: Place) -> None:
    subprocess.run(["./python", "-m", "venv", ".venv"], cwd=place.folder, check=True)
    (place.venv / "theirs").touch()
    (place.folder / "broken").touch()
    assert place.install()[0] != 0
    (place.folder / "broken").unlink()
    code, said = place.install()
    assert code == 0 and "anew" not in said and (place.venv / "theirs").exists()


def test_an_old_environment_is_named(place: Place) -> None:
    place.python("other", "3.9")
    subprocess.run(["./other", "-m", "venv", ".venv"], cwd=place.folder, check=True)
    code, said = place.install()
    assert code == 2 and ".venv/bin/python is Python 3.9" in said and "Remove .venv" in said


def test_a_folder_that_is_no_environment_is_left_alone(place: Place) -> None:
    place.venv.mkdir()
    (place.venv / "thesis.txt").touch()
    code, said = place.install()
    assert code == 2 and "is no virtual environment" in said and (place.venv / "thesis.txt").exists()
