"""Files and folders appear whole or not at all; what clips make of it is in clip/test_clip_atomic.py."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stillmotion.atomic import (
    FolderKind,
    _hidden_name,
    check_free,
    durable,
    make_folder,
    replacing,
    sweep,
    write_text,
)
from stillmotion.checkpoints.formats import MODEL_FOLDER
from stillmotion.errors import OutputError
from stillmotion.video.writers import CLIP_FOLDER


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


def _special(path: Path, kind: str) -> None:
    """A node of this kind at `path`; PermissionError where devices cannot be made."""
    aim = path.with_name("aim")
    if kind == "link to a file":
        aim.write_text("precious")
        path.symlink_to(aim)
    elif kind == "link to a folder":
        aim.mkdir()
        path.symlink_to(aim)
    elif kind == "link to nothing":
        path.symlink_to(aim)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(path.parent)  # names of sockets are short
            server.bind(path.name)
    else:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize("writes", ["a file", "a folder"])
@pytest.mark.parametrize(
    "kind", ["link to a file", "link to a folder", "link to nothing", "pipe", "socket", "device"]
)
def test_nothing_special_is_ever_replaced(tmp_path: Path, monkeypatch, kind: str, writes: str) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        _special(tmp_path / "x", kind)
    except PermissionError:
        pytest.skip("no devices can be made here")
    before = sorted((p.name, p.lstat().st_ino, p.lstat().st_mode) for p in tmp_path.iterdir())
    folder = CLIP_FOLDER if writes == "a folder" else None
    for attempt in (lambda: check_free(tmp_path / "x", True, folder), lambda: _write(tmp_path / "x", folder)):
        with pytest.raises(OutputError, match="is never replaced: choose another name"):
            attempt()
    assert sorted((p.name, p.lstat().st_ino, p.lstat().st_mode) for p in tmp_path.iterdir()) == before


def _write(path: Path, folder: FolderKind | None) -> None:
    with replacing(path, overwrite=True, folder=folder) as unfinished:
        unfinished.mkdir() if folder else unfinished.write_text("new")


def test_something_special_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a pipe"), replacing(tmp_path / "x", overwrite=True) as unfinished:
        unfinished.write_text("new")
        os.mkfifo(tmp_path / "x")
    assert stat.S_ISFIFO((tmp_path / "x").lstat().st_mode) and len(list(tmp_path.iterdir())) == 1


def test_a_folder_replaces_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0000.png").touch()
    with pytest.raises(OutputError, match="is a file, which a folder does not replace"):
        _write(tmp_path / "file", CLIP_FOLDER)
    with pytest.raises(OutputError, match="is a folder"):
        _write(tmp_path / "folder", None)
    assert (tmp_path / "file").read_text() == "precious" and (tmp_path / "folder" / "0000.png").exists()


@pytest.mark.parametrize(
    ("kind", "names", "stranger"),
    [
        (CLIP_FOLDER, ["clip.json", "0000.png", "0001.png"], None),
        (CLIP_FOLDER, ["0000.png", "0001.png"], "no clip.json"),
        (CLIP_FOLDER, ["clip.json", "0000.png", "holiday.png"], "holiday.png"),
        (CLIP_FOLDER, ["clip.json", "0000.png", ".hidden"], ".hidden"),
        (CLIP_FOLDER, ["clip.json", "0000.png", "sub/0000.png"], "sub/0000.png"),
        (MODEL_FOLDER, ["model_index.json", "unet/config.json", "tokenizer/merges.txt"], None),
        (MODEL_FOLDER, ["config.json", "diffusion_pytorch_model.fp16.safetensors"], None),
        (MODEL_FOLDER, ["config.json", "my-style.safetensors"], "my-style.safetensors"),
        (MODEL_FOLDER, ["model_index.json", "unet/config.json", "unet/notes.txt"], "unet/notes.txt"),
        (MODEL_FOLDER, ["unet/config.json"], "no model_index.json"),
    ],
)
def test_only_a_folder_of_ours_is_replaced(tmp_path: Path, kind: FolderKind, names, stranger) -> None:
    for name in names:
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("old")
    if stranger is None:
        _write(tmp_path / "x", kind)
        assert not list((tmp_path / "x").iterdir())
    else:
        with pytest.raises(OutputError, match=f"holds other things than .*{re.escape(stranger)}"):
            _write(tmp_path / "x", kind)
        assert all((tmp_path / "x" / name).read_text() == "old" for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_mount_point_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(OutputError, match="is a mount point"):
        _write(tmp_path / "disk", CLIP_FOLDER)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("-", "Nothing is written to the standard output"),
        ("", "has no name of its own"),
        ("..", "has no name of its own"),
        ("/", "has no name of its own"),
        ("x\0y", "null character"),
        ("n" * 300, "is 300 bytes long"),
        ("ü" * 130, "is 260 bytes long"),
        ("n" * 300 + "/x", "is 300 bytes long"),
        ("dangling/x", "is a file, not a folder"),
    ],
)
def test_names_that_cannot_be_are_refused_first(
    tmp_path: Path, monkeypatch, name: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError, match=sentence):
        check_free(Path(name), overwrite=True)


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_the_longest_names_can_be_written_and_replaced(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        _write(tmp_path / name, None)
        assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_what_the_disk_refuses_is_a_sentence(tmp_path: Path, monkeypatch, code: int) -> None:
    with (
        pytest.raises(OutputError, match=f"x could not be written: {os.strerror(code)}."),
        replacing(tmp_path / "new" / "x"),
    ):
        raise OSError(code, os.strerror(code))
    assert not list(tmp_path.iterdir())

    def probed(self: Path, **_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "touch", probed)
    with pytest.raises(OutputError, match="written"):  # asked before the work
        check_free(tmp_path / "y", overwrite=False)


def test_a_folder_removed_midway_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), replacing(tmp_path / "new" / "x") as unfinished:
        unfinished.write_text("ours")
        shutil.rmtree(tmp_path / "new")


def test_another_process_that_is_faster_wins_without_force(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stillmotion.atomic._open_up", lambda _: (tmp_path / "x").write_text("theirs"))
    with pytest.raises(OutputError, match="exists"), replacing(tmp_path / "x") as unfinished:
        unfinished.write_text("ours")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["theirs"]


def test_the_sweep_spares_living_processes_and_foreign_files(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = _hidden_name(tmp_path / "clip.gif").name
    theirs = ours.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = re.sub(r"\.[0-9a-f]{8}-", ".00000000-", ours)
    for name in (ours, theirs, elsewhere, ".film.mkv.part"):
        (tmp_path / name).touch()
    sweep(tmp_path, ours=False)
    assert {path.name for path in tmp_path.iterdir()} == {ours, elsewhere, ".film.mkv.part"}
    os.utime(tmp_path / elsewhere, (0, 0))
    sweep(tmp_path, ours=False)
    assert {path.name for path in tmp_path.iterdir()} == {ours, ".film.mkv.part"}


def test_a_swap_killed_between_its_renames_gives_the_old_folder_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = _hidden_name(tmp_path / "clip").name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    for end, text in (("", "new"), (".old", "old")):
        (tmp_path / (name + end)).mkdir()
        (tmp_path / (name + end) / "0000.png").write_text(text)
    sweep(tmp_path, ours=False)
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]
    assert (tmp_path / "clip" / "0000.png").read_text() == "old"


def test_a_folder_to_write_into_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    for path in (tmp_path / "run", tmp_path / "run" / "deep"):
        with pytest.raises(OutputError, match="run"):
            make_folder(path)
    make_folder(tmp_path / "new" / "run")
    make_folder(tmp_path / "new" / "run")
