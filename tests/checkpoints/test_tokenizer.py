"""CLIP's vocabulary, which the library holds as merges only, against the file that the bundled model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stillmotion_emoji import FOLDER

from stillmotion.checkpoints import tokenizer
from stillmotion.checkpoints.tokenizer import MERGES, clip_tokenizer, clip_vocabulary

CONFIGS = MERGES.parents[1]


def test_vocabulary_and_merges_are_clips() -> None:
    stored = json.loads((FOLDER / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary, merges = clip_vocabulary()
    assert vocabulary == stored["vocab"] and len(vocabulary) == 49408
    assert [list(merge) for merge in merges] == stored["merges"]
    assert MERGES.stat().st_size < 170_000


@pytest.mark.parametrize(
    "text", ["a photo of a Corgi dog!", "naïve café, 3D 🚀 12,5 ﬁsh", "", "'s  \t<|endoftext|> x"]
)
def test_tokens_are_those_of_a_complete_tokenizer(text: str) -> None:
    ours, theirs = clip_tokenizer(CONFIGS / "sd15" / "tokenizer"), clip_tokenizer(FOLDER / "tokenizer")
    assert ours(text).input_ids == theirs(text).input_ids
    assert (ours.model_max_length, theirs.model_max_length) == (77, 32)
    assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)


def test_a_folder_with_a_vocabulary_of_its_own_keeps_it(tmp_path: Path) -> None:
    made = clip_tokenizer(CONFIGS / "sd15" / "tokenizer")
    made.add_tokens(["<my-cat>"])
    made.save_pretrained(tmp_path)
    assert len(clip_tokenizer(tmp_path)) == 49409
    (tmp_path / "tokenizer.json").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 77
    assert len(clip_tokenizer(tmp_path)) == 49408


def test_the_quick_way_is_taken_for_clips_own_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model's tokenizer is made without parsing its file; with one more setting it is read."""
    read: list[Path] = []
    monkeypatch.setattr(tokenizer, "_read", lambda folder, settings: read.append(folder))
    clip_tokenizer(FOLDER / "tokenizer")
    assert not read
    more = {"added_tokens.json": '{"x": 49408}', "tokenizer_config.json": '{"a": 0}', "tokenizer.json": "{}"}
    for name, text in more.items():
        folder = shutil.copytree(FOLDER / "tokenizer", tmp_path / name)
        (folder / name).write_text(text)
        clip_tokenizer(folder)
    assert len(read) == 3


def test_the_quick_way_saves_what_the_other_saves(tmp_path: Path) -> None:
    quick = clip_tokenizer(FOLDER / "tokenizer")
    slow = tokenizer._read(FOLDER / "tokenizer", {})
    assert quick.backend_tokenizer.to_str() == slow.backend_tokenizer.to_str()
    assert (
        quick.special_tokens_map == slow.special_tokens_map and quick.all_special_ids == slow.all_special_ids
    )
    quick.save_pretrained(tmp_path)
    again = tokenizer._read(tmp_path, {})
    assert again("a dog").input_ids == slow("a dog").input_ids and again.model_max_length == 32
