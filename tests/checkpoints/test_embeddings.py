"""Textual inversions of every format, read without running them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.identify import identify
from stillmotion.errors import UnknownFile, WrongKind

VECTORS = torch.arange(2 * 768, dtype=torch.float32).reshape(2, 768)


def webui(param: object) -> dict[str, object]:
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": param,
        "name": "Easy-Word",
        "step": 500,
        "sd_checkpoint": None,
    }


def save(path: Path, content: dict[str, object]) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.pt", webui({"*": VECTORS}), "easy-word"),
        ("old.pt", webui(nn.ParameterDict({"*": nn.Parameter(VECTORS)})), "easy-word"),
        ("b.bin", {"<cat-toy>": VECTORS}, "<cat-toy>"),
        ("c.safetensors", {"<cat-toy>": VECTORS}, "<cat-toy>"),
        ("Bad Hands.safetensors", {"emb_params": VECTORS}, "bad hands"),
        ("half.safetensors", {"emb_params": VECTORS}, "half"),
    ],
)
def test_every_format_gives_its_word_and_vectors(name, content, word, tmp_path: Path) -> None:
    found = read_embedding(save(tmp_path / name, content))
    assert (found.word, found.name, list(found.vectors)) == (word, name, ["text_encoder"])
    assert torch.equal(found.vectors["text_encoder"], VECTORS)
    assert read_embedding(tmp_path / name, "Mine").word == "mine"


def test_one_vector_without_a_row(tmp_path: Path) -> None:
    found = read_embedding(save(tmp_path / "one.bin", {"<cat>": VECTORS[0]}))
    assert found.vectors["text_encoder"].shape == (1, 768)


def test_pairs_of_sdxl(tmp_path: Path) -> None:
    wide: Tensor = torch.ones(2, 1280)
    found = read_embedding(save(tmp_path / "xl.safetensors", {"clip_l": VECTORS, "clip_g": wide}))
    assert found.word == "xl" and torch.equal(found.vectors["text_encoder"], VECTORS)
    assert torch.equal(found.vectors["text_encoder_2"], wide)


def test_widths_of_no_known_family_are_embeddings_too(tmp_path: Path) -> None:
    file = save(tmp_path / "emoji.safetensors", {"<my-cat>": torch.ones(1, 192)})
    assert identify(file).kind == "embedding" and read_embedding(file).word == "<my-cat>"
    assert identify(save(tmp_path / "x.safetensors", {"weight": torch.ones(9)})).kind == "unknown"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongKind, match="l.safetensors is a LoRA .* not a textual inversion"):
        lora = {"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}
        read_embedding(save(tmp_path / "l.safetensors", lora))
    two = webui({"*": VECTORS}) | {"emb_params": VECTORS}
    with pytest.raises(UnknownFile, match="two.pt holds several words"):
        read_embedding(save(tmp_path / "two.pt", two))


@pytest.mark.parametrize("counter", ["step", "steps", "global_step"])
def test_counters_and_placeholders_of_other_trainers(counter: str, tmp_path: Path) -> None:
    own = save(
        tmp_path / "a.pt", {"string_to_token": {"sks": torch.tensor(9)}, "string_to_param": {"sks": VECTORS}}
    )
    assert read_embedding(own).word == "sks"
    counted = save(tmp_path / "b.safetensors", {"emb_params": VECTORS, counter: torch.tensor(5)})
    assert torch.equal(read_embedding(counted).vectors["text_encoder"], VECTORS)
    alone = save(tmp_path / "c.safetensors", {"<cat>": VECTORS, counter: torch.tensor(5)})
    assert read_embedding(alone).word == "<cat>"


def test_pivotal_tuning_of_sdxl(tmp_path: Path) -> None:
    pair = {"text_encoders_0": VECTORS, "text_encoders_1": torch.ones(2, 1280)}
    file = save(tmp_path / "tokens.safetensors", pair)
    found = read_embedding(file)
    assert {part: tuple(v.shape) for part, v in found.vectors.items()} == {
        "text_encoder": (2, 768),
        "text_encoder_2": (2, 1280),
    }
    assert found.word == "tokens" and identify(file).base == "sdxl"


def test_a_scalar_alone_is_no_embedding(tmp_path: Path) -> None:
    for content in ({"emb_params": torch.tensor(1.0)}, {"<cat>": torch.zeros(0, 768)}):
        assert identify(save(tmp_path / "x.safetensors", content)).kind == "unknown"
