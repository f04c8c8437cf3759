"""What was sampled is never lost, whatever happens to the disk, the folder or another run meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stillmotion.atomic import replacing
from stillmotion.cli.progress import waiting
from stillmotion.errors import OutputError
from stillmotion.request import Request
from stillmotion.sampling.jobs import kept_until_written
from stillmotion.sampling.latents import EXTENSION, Latents, keep, latents_path
from stillmotion.sampling.output_file import Target

LATENTS = Latents(torch.zeros(2, 4, 2, 2), Request(prompt="a rocket", frames=2, fps=8))
LATER = 4e9
"""A time at which everything there is old."""


def kept(output: Path, since: float = LATER):
    with waiting() as bars:
        return kept_until_written(LATENTS, Target(str(output)), since, bars)


def full(refused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space under this folder."""

    def check(path, *args, **options):
        if Path(path).is_relative_to(refused):
            raise OutputError(f"{path} could not be written: {os.strerror(errno.ENOSPC)}.")
        return replacing(path, *args, **options)

    monkeypatch.setattr("stillmotion.sampling.latents.replacing", check)


def test_latents_lie_beside_the_output_while_it_is_written(tmp_path: Path) -> None:
    with kept(tmp_path / "x.gif"):
        assert [path.name for path in tmp_path.iterdir()] == ["x.gif" + EXTENSION]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_sends_the_latents_elsewhere_and_says_where(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    full(tmp_path / "full", monkeypatch)
    with pytest.raises(RuntimeError), kept(tmp_path / "full" / "x.gif"):
        raise RuntimeError
    (file,) = (tmp_path / "spare").iterdir()
    said = capsys.readouterr().err
    assert "No space left on device" in said and f"`stillmotion decode {file}`" in said
    assert torch.equal(Latents.load(file).tensor, LATENTS.tensor)


def test_the_clip_is_tried_where_no_disk_takes_the_latents(tmp_path, monkeypatch, capsys) -> None:
    full(Path("/"), monkeypatch)
    with kept(tmp_path / "x.gif"):
        (tmp_path / "x.gif").write_text("a clip")
    assert "in memory only until the clip is written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


def test_a_folder_removed_midway_loses_nothing(tmp_path: Path, capsys) -> None:
    with pytest.raises(RuntimeError), kept(tmp_path / "new" / "x.gif"):
        shutil.rmtree(tmp_path / "new")
        raise RuntimeError
    assert Latents.load(tmp_path / "new" / f"x.gif{EXTENSION}").request == LATENTS.request
    assert "What was sampled is not lost" in capsys.readouterr().err


def test_two_runs_of_one_output_keep_their_own(tmp_path: Path) -> None:
    began = time.time() - 1
    with kept(tmp_path / "x.gif", began):
        with kept(tmp_path / "x.gif", began):
            assert sorted(path.name for path in tmp_path.iterdir()) == [
                f"x.gif-2{EXTENSION}",
                f"x.gif{EXTENSION}",
            ]
        assert [path.name for path in tmp_path.iterdir()] == [f"x.gif{EXTENSION}"]
        latents_path(tmp_path / "x.gif").unlink()  # as another run might at its end
    assert not list(tmp_path.iterdir())


def test_old_latents_are_replaced(tmp_path: Path) -> None:
    latents_path(tmp_path / "x.gif").write_text("old")
    keep(LATENTS, tmp_path / "x.gif", LATER)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif" + EXTENSION]


def test_the_latents_of_a_long_name_have_a_name(tmp_path: Path) -> None:
    output = tmp_path / ("ü" * 120 + ".webp")
    path, why = keep(LATENTS, output, LATER)
    assert not why and path is not None and len(os.fsencode(path.name)) <= 255
    assert path.name.endswith(".webp" + EXTENSION)


@pytest.mark.parametrize("end", ["| head -c 1 >/dev/null", ">&-", ">/dev/full", "2>&- >&-", "2>/dev/full"])
def test_no_traceback_whatever_happens_to_the_output(end: str) -> None:
    line = f"{sys.executable} -c 'from stillmotion.cli import main; main()' inspect --families {end}"
    said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60).stderr
    assert "Traceback" not in said and "Exception ignored" not in said


def test_errors_of_the_system_are_sentences(say, monkeypatch) -> None:
    for code in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.EIO):

        def failing(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code), "somewhere/x.gif")

        monkeypatch.setattr("stillmotion.cli.concepts.bundled_folder", failing)
        said = say("concepts")
        assert said.code == 2 and said.err == f"Error: somewhere/x.gif cannot be used: {os.strerror(code)}.\n"
