"""The tokenizer of a folder is the one that transformers reads there; broken files are a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from stillmotion.checkpoints.tokenizer import clip_tokenizer, clip_vocabulary
from stillmotion.errors import Damaged

TEXT = "a <cat-toy> and <s1><s2> photo of SKS!"
PAD = {"__type": "AddedToken", "content": "!", "lstrip": False, "normalized": True, "rstrip": False}
MAP = {"pad_token": "!", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def plain() -> CLIPTokenizer:
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def old_files(folder: Path, **settings: Any) -> None:
    """A folder as transformers 4 without fast tokenizers wrote it."""
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    known = {"pad_token": "<|endoftext|>", "model_max_length": 77, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


OLD: dict[str, Callable[[Path], None]] = {
    "plain": lambda folder: old_files(folder),
    "added": lambda folder: (old_files(folder), write(folder, "added_tokens.json", {"<cat-toy>": 49408}))[0],
    "map": lambda folder: (old_files(folder), write(folder, "special_tokens_map.json", MAP))[0],
    "dict": lambda folder: old_files(folder, pad_token=PAD),
}


def assert_same(folder: Path) -> CLIPTokenizer:
    ours, theirs = clip_tokenizer(folder), CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert ours.get_vocab() == theirs.get_vocab() and ours.model_max_length == theirs.model_max_length == 77
    asked = {"padding": "max_length", "truncation": True}
    assert ours(TEXT, **asked).input_ids == theirs(TEXT, **asked).input_ids
    return ours


@pytest.mark.parametrize("kind", OLD)
def test_old_folders(kind: str, tmp_path: Path) -> None:
    OLD[kind](tmp_path)
    found = assert_same(tmp_path)
    assert found.pad_token == ("!" if kind in ("map", "dict") else "<|endoftext|>")
    assert ("<cat-toy>" in found.get_vocab()) == (kind == "added")


def test_added_words_are_kept(plain: CLIPTokenizer, tmp_path: Path) -> None:
    own = CLIPTokenizer(vocab=clip_vocabulary()[0], merges=clip_vocabulary()[1], model_max_length=77)
    own.add_tokens(["<cat-toy>", "<s1>", "<s2>"])
    own.save_pretrained(tmp_path)
    assert len(assert_same(tmp_path)) == len(plain) + 3


@pytest.mark.parametrize(
    "content", ["{", "", "[]", "{}", "null", '{"model": 3}', '{"added_tokens": [], "model": {"type": "BPE"}}']
)
def test_a_broken_tokenizer_is_a_sentence(plain: CLIPTokenizer, content: str, tmp_path: Path) -> None:
    plain.save_pretrained(tmp_path)
    assert_same(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(Damaged, match="tokenizer.*(cannot be read|not the settings)") as caught:
        clip_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("vocab.json", "{"), ("merges.txt", "a\nb c d\n")])
def test_broken_old_files_are_a_sentence(name: str, content: str, tmp_path: Path) -> None:
    old_files(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(Damaged, match="tokenizer in|vocab.json cannot be read"):
        clip_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": "x"}')
    with pytest.raises(Damaged, match="model_max_length = x"):
        clip_tokenizer(tmp_path)
