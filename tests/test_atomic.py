"""Files and folders appear whole or not at all; what clips make of it is in clip/test_clip_atomic.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stillmotion.atomic import durable, replacing, sweep, write_text
from stillmotion.errors import OutputError


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"), replacing(tmp_path / "x") as unfinished:
        unfinished.write_text("ours")
        (tmp_path / "x").write_text("theirs")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("writer", [lambda path: replacing(path, overwrite=True), durable])
def test_an_exception_leaves_the_old_file_alone(tmp_path: Path, writer) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(RuntimeError), writer(tmp_path / "x") as new:
        new.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_durable_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, fsync = [], os.fsync

    def watched(handle: int) -> None:
        flushed.append(((tmp_path / "new").exists(), os.fstat(handle).st_ino))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    with durable(tmp_path / "new") as folder:
        folder.mkdir()
        (folder / "part").write_text("whole")
    nodes = [path.stat().st_ino for path in (tmp_path / "new", tmp_path / "new" / "part", tmp_path)]
    assert flushed == [(False, nodes[0]), (False, nodes[1]), (True, nodes[2])]


def test_text_replaces_text_and_makes_its_folder(tmp_path: Path) -> None:
    for text in ("first", "zweites, länger"):
        write_text(tmp_path / "deep" / "notes.txt", text)
        assert (tmp_path / "deep" / "notes.txt").read_text("utf-8") == text
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    (tmp_path / ".x.1234.part").mkdir()
    (tmp_path / ".x.1234.part" / "half").touch()
    (tmp_path / ".y.1234.part").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    with replacing(tmp_path / "model") as unfinished:
        unfinished.mkdir()
        (unfinished / "a.safetensors").touch(mode=0o600)
    assert (tmp_path / "model" / "a.safetensors").stat().st_mode == usual
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "plain"]
