"""CLIP's vocabulary, which the library holds as merges only, against the file that the bundled model has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stillmotion_emoji import FOLDER

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
    tokenizer = clip_tokenizer(CONFIGS / "sd15" / "tokenizer")
    tokenizer.add_tokens(["<my-cat>"])
    tokenizer.save_pretrained(tmp_path)
    assert len(clip_tokenizer(tmp_path)) == 49409
    (tmp_path / "tokenizer.json").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 77
    assert len(clip_tokenizer(tmp_path)) == 49408
