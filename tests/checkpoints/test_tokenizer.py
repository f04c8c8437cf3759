"""CLIP's vocabulary, which the library holds as merges only, against the file that the bundled model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stillmotion_emoji import FOLDER

from stillmotion.checkpoints import tokenizer
from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.tokenizer import MERGES, clip_tokenizer, clip_vocabulary
from stillmotion.errors import Damaged

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


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", lambda c: c["model"].update(vocab=5)),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(x=0)),
        ("tokenizer.json", lambda c: c["model"]["merges"].append(["a", "nowhere"])),
        ("tokenizer.json", lambda c: c["model"].update(end_of_word_suffix="")),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": 60_000, "content": "<cat>"})),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": 49_408, "content": "\ud83d"})),
        ("tokenizer_config.json", lambda c: c.update(bos_token=["x"])),
        ("tokenizer_config.json", lambda c: c.update(model_max_length="long")),
    ],
)
def test_tokenizers_that_are_none_end_in_a_sentence(file, change, tmp_path: Path) -> None:
    clip_tokenizer(FOLDER / "tokenizer").save_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{}")  # not the quick way
    clip_tokenizer(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    change(content)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(Damaged, match="tokenizer"):
        clip_tokenizer(tmp_path)


def test_a_tokenizer_of_files_before_tokenizer_json(tmp_path: Path) -> None:
    vocabulary, merges = clip_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": 49409, "<a>": 49408}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    made, clips = clip_tokenizer(tmp_path), clip_tokenizer(FOLDER / "tokenizer")
    assert made("a dog <a><b>").input_ids[1:-1] == [*clips("a dog").input_ids[1:-1], 49408, 49409]
    assert (made.pad_token, made.model_max_length) == ("!", 77)


def test_a_tokenizer_of_another_model_is_refused(sd15_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "base")
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(FOLDER / "tokenizer", folder / "tokenizer")
    with pytest.raises(Damaged, match=r"has 49408 tokens .* but its text_encoder knows \d+"):
        load_base(folder)
