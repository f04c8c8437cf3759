"""Clips and latents find their models from another folder, and say what is missing or has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_vae

from stillmotion.request import Request
from stillmotion.request.model_files import MOST_RECORDS, ModelFile, read_records
from stillmotion.sampling.latents import Latents
from stillmotion.video import Clip, open_frames

SMALL = ("--frames", 2, "--steps", 1, "--seed", 1)


@pytest.fixture
def made(say, bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of models/other (a VAE) and clips/one.webp, made in the folder of the clip."""
    (tmp_path / "project" / "clips").mkdir(parents=True)
    tiny_vae(seed=7).save_pretrained(tmp_path / "project" / "models" / "other")
    monkeypatch.chdir(tmp_path / "project" / "clips")
    said = say("animate", "a rocket", "-o", "one.webp", "--quality", 100, "--vae", "../models/other", *SMALL)
    assert said.code == 0, said.err
    return tmp_path


def redone(say, clip: Path, *flags: object) -> str:
    said = say("redo", clip, "-o", "again.webp", "--quality", 100, "-f", *flags)
    if said.code:
        return said.err
    assert np.array_equal(Clip.load("again.webp").frames, Clip.load(clip).frames)
    return ""


def test_a_project_moves_as_a_whole(say, made: Path, monkeypatch) -> None:
    shutil.move(made / "project", made / "moved")
    monkeypatch.chdir(made)
    clip = Path("moved/clips/one.webp")
    assert "never opened here" in redone(say, clip)
    assert redone(say, clip, "--trust") == ""
    assert redone(say, clip) == ""  # opened once, by its new place
    assert Clip.load("again.webp").request.vae == os.path.normpath("moved/models/other")


@pytest.mark.parametrize("name", ["other", "renamed"])
def test_a_model_beside_the_clip_is_found_by_name_or_content(say, made: Path, monkeypatch, name) -> None:
    shutil.move(made / "project" / "models" / "other", made / "project" / "clips" / name)
    monkeypatch.chdir(made)
    assert redone(say, Path("project/clips/one.webp"), "--trust") == ""


def test_what_is_missing_is_named_with_its_flag(say, made: Path) -> None:
    shutil.rmtree(made / "project" / "models")
    error = redone(say, Path("one.webp"), "--trust")
    assert "../models/other" in error and "--vae" in error and "bytes" in error
    assert say("redo", "one.webp", "-o", "b.webp", "--vae", "nowhere").code == 2
    shutil.copytree(tiny_folder(made), "mine")
    assert say("redo", "one.webp", "-o", "b.webp", "--vae", "mine").code == 0  # what the user names wins


def tiny_folder(folder: Path) -> Path:
    tiny_vae(seed=8).save_pretrained(folder / "spare")
    return folder / "spare"


def test_what_has_changed_is_said_and_used(say, made: Path) -> None:
    tiny_vae(seed=8).save_pretrained(made / "project" / "models" / "other")
    said = say("redo", "one.webp", "-o", "again.webp")
    assert said.code == 0 and "../models/other has another content than when the clip was made" in said.err
    tiny_vae(seed=7).save_pretrained("the-right-one")
    assert redone(say, Path("one.webp")) == ""  # of the same size; told by its content


def test_latents_find_their_vae_too(say, made: Path, monkeypatch) -> None:
    request = Request(prompt="x", base="emoji", vae="../models/other", frames=1, fps=8)
    files = (ModelFile.of("../models/other"),)
    Latents(torch.zeros(1, 4, 8, 8), request, files).save("a.webp.latents.safetensors")
    shutil.move(made / "project", made / "moved")
    monkeypatch.chdir(made)
    said = say(
        "decode", "moved/clips/a.webp.latents.safetensors", "--trust", "-o", "b.webp", "--quality", 100
    )
    assert said.code == 0, said.err
    expected = Latents(torch.zeros(1, 4, 8, 8), request).decode(tiny_vae(seed=7))
    assert np.array_equal(Clip.load("b.webp").frames, expected.frames)
    source = open_frames("b.webp")
    assert source.files[0].name == source.request.vae == os.path.normpath("moved/models/other")


def test_records_of_gigabytes_cost_nothing(tmp_path: Path) -> None:
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(2**35)
    before = ModelFile.of(str(tmp_path / "large.safetensors"))
    assert before.size == 2**35 and before.is_at(before.path)
    with (tmp_path / "large.safetensors").open("r+b") as file:
        file.seek(2**35 - 1)
        file.write(b"x")
    assert not before.is_at(before.path)
    assert ModelFile.of("emoji") is None and ModelFile.of("owner/model") is None


GOOD = {"name": "a", "path": "a", "size": 1, "hash": "0"}


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        [1],
        [GOOD | {"size": True}],
        [GOOD | {"size": -1}],
        [GOOD | {"size": "1"}],
        [GOOD | {"name": "a\0b"}],
        [GOOD | {"path": "x" * 5000}],
        [GOOD | {"more": 1}],
        [{"name": "a"}],
    ],
)
def test_records_of_strangers_are_checked(content: object, tmp_path: Path) -> None:
    assert read_records(content, tmp_path) == ()
    assert len(read_records([GOOD] * 10_000, tmp_path)) == MOST_RECORDS


def test_a_grid_and_a_sheet_carry_all_requests(say, bundled, tmp_path: Path) -> None:
    flags = ("-o", "g.webp", "--quality", 100, "--frames", 2, "--steps", 1)
    assert say("animate", "a rocket", "-n", 3, "--seed", 5, *flags).code == 0
    assert [request.seed for request in Clip.load("g.webp").requests] == [5, 6, 7]
    shown = say("info", "g.webp").out
    assert "3 clips" in shown and "seed: 5 | 6 | 7\n" in shown and "prompt: a rocket\n" in shown
    assert len(say("info", "g.webp", "--json").out.splitlines()) == 3
    assert say("redo", "g.webp", "-o", "r.webp", "--quality", 100).code == 0
    for seed in ("", "-seed5", "-seed6", "-seed7"):
        assert np.array_equal(Clip.load(f"g{seed}.webp").frames, Clip.load(f"r{seed}.webp").frames)
    assert say("redo", "g.webp", "-n", 2).code == 2
    assert say("sheet", "g-seed6.webp").code == 0
    assert "seed: 6\n" in say("info", "g-seed6-sheet.png").out
    assert say("redo", "g-seed6-sheet.png").out.startswith("g-seed6-sheet-redo.gif: 2 frames")
    assert say("sheet", "g.webp").code == 0
    assert len(Clip.load("g-sheet.png").requests) == 3
