"""Textual inversions and another VAE through the Animator: as diffusers loads them, heard only when named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_pipeline, tiny_vae

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.embeddings import Embedding
from stillmotion.checkpoints.textual_inversion import load_textual_inversions
from stillmotion.cli.options import given
from stillmotion.diffusion.text import normalize_tokens
from stillmotion.errors import Mismatch, RequestError
from stillmotion.request import Request
from stillmotion.sampling.animator import Animator

ASKED = {"seed": 1, "frames": 2, "num_inference_steps": 2}


def vectors(count: int, width: int = 32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)) * 3


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    save_file({"Cat-Toy": vectors(3)}, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def load(base: Path, motion: Path, **more) -> Animator:
    return Animator.load(str(base), motion=str(motion), dtype="fp32", device="cpu", **more)


def test_a_word_is_heard_only_where_it_stands(sd15_folder, motion_folder, toy) -> None:
    plain, taught = (
        load(sd15_folder, motion_folder),
        load(sd15_folder, motion_folder, embeddings={str(toy): ""}),
    )
    assert taught.words == ("cat-toy",)
    for prompt, same in (("a rocket", True), ("a cat-toy", False)):
        with_, without = (animator.animate(prompt, **ASKED).frames for animator in (taught, plain))
        assert np.array_equal(with_, without) is same
    assert np.array_equal(
        taught.animate("a Cat-TOY", **ASKED).frames, taught.animate("a cat-toy", **ASKED).frames
    )
    negative = taught.animate("a rocket", negative_prompt="Cat-toy", **ASKED)
    assert not np.array_equal(
        negative.frames, taught.animate("a rocket", negative_prompt="cat", **ASKED).frames
    )


def test_a_clip_with_words_and_vae_can_be_made_again(sd15_folder, motion_folder, toy, tmp_path) -> None:
    tiny_vae(seed=7).save_pretrained(tmp_path / "other")
    models = {"embeddings": {str(toy): "thing"}, "vae": str(tmp_path / "other")}
    clip = load(sd15_folder, motion_folder, **models).animate("a thing", **ASKED)
    request = Request.from_json(clip.request.to_json())
    assert (request.vae, request.embeddings) == (models["vae"], models["embeddings"])
    again = load(request.base, request.motion, vae=request.vae, embeddings=request.embeddings)
    assert np.array_equal(again.animate(request).frames, clip.frames)
    plain = load(sd15_folder, motion_folder, embeddings={str(toy): "thing"})
    with pytest.raises(RequestError, match="asks for the vae"):
        plain.animate(request)
    with pytest.raises(RequestError, match="asks for the embeddings"):
        plain.animate("a thing", embeddings={str(toy): "other"})


def test_another_vae_decodes_the_same_latents(sd15_folder, motion_folder, tmp_path) -> None:
    tiny_vae(seed=7).save_pretrained(tmp_path / "other")
    plain = load(sd15_folder, motion_folder)
    other = load(sd15_folder, motion_folder, vae=str(tmp_path / "other"))
    latents = plain.sample(plain.request("a rocket", **ASKED))
    assert torch.equal(other.sample(other.request("a rocket", **ASKED)).tensor, latents.tensor)
    assert torch.equal(other.pipeline.vae.decoder.conv_in.weight, tiny_vae(seed=7).decoder.conv_in.weight)


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_as_diffusers_own_loading(count: int, sd15_folder) -> None:
    ours, theirs = load_base(sd15_folder), load_base(sd15_folder)
    before = torch.get_rng_state()
    load_textual_inversions(ours, [Embedding("cat-toy", {"text_encoder": vectors(count)}, "toy.pt")])
    assert torch.equal(torch.get_rng_state(), before)
    theirs.load_textual_inversion({"cat-toy": vectors(count)})
    for prompt in ("a cat-toy rocket", "cat-toy"):
        one, two = (pipe.encode_prompt(prompt, "cpu", 1, False)[0] for pipe in (ours, theirs))
        assert torch.equal(one, two)


def test_both_text_encoders_of_sdxl(sdxl_folder, tmp_path) -> None:
    pair = {"clip_l": vectors(2), "clip_g": -vectors(2)}
    save_file(pair, tmp_path / "pair.safetensors")
    ours = Animator.load(
        str(sdxl_folder), "none", embeddings={str(tmp_path / "pair.safetensors"): ""}, dtype="fp32"
    )
    theirs = load_base(sdxl_folder)
    theirs.load_textual_inversion({"pair": pair["clip_l"]})
    second = {"tokenizer": theirs.tokenizer_2, "text_encoder": theirs.text_encoder_2}
    theirs.load_textual_inversion({"pair": pair["clip_g"]}, **second)
    for one, two in zip(*(pipe.encode_prompt("a pair") for pipe in (ours.pipeline, theirs)), strict=True):
        assert torch.equal(one, two)


def test_a_word_that_is_not_said_gets_a_hint(sd15_folder, motion_folder, toy) -> None:
    animator = load(sd15_folder, motion_folder, embeddings={str(toy): ""})
    silent = animator.hints(animator.request("a rocket", **ASKED))
    assert any("'cat-toy' was loaded, but stands neither in the prompt" in hint for hint in silent)
    for texts in ({"prompt": "a Cat-Toy"}, {"prompt": "a rocket", "negative_prompt": "cat-toy"}):
        assert animator.hints(animator.request(**texts, **ASKED)) == []


def test_every_vector_of_a_word_counts_as_a_token(sd15_folder, motion_folder, tmp_path) -> None:
    save_file({"long": vectors(60)}, tmp_path / "long.safetensors")
    animator = load(sd15_folder, motion_folder, embeddings={str(tmp_path / "long.safetensors"): ""})
    assert animator.hints(animator.request("a long rocket", **ASKED)) == []
    hints = animator.hints(animator.request("a long rocket, a long cat", **ASKED))
    assert any("reads 75 tokens" in hint for hint in hints)


def embedding(**widths: int) -> Embedding:
    return Embedding("thing", {part: vectors(1, width) for part, width in widths.items()}, "e.pt")


@pytest.mark.parametrize(
    ("kind", "given_", "words"),
    [
        ("sd15", embedding(text_encoder=768), r"e.pt is .* width 768 \(Stable Diffusion 1.x\), .* 32 wide"),
        ("sd15", embedding(text_encoder=32, text_encoder_2=32), "two text encoders .* this base has one"),
        ("sdxl", embedding(text_encoder=32), "one text encoder, but this base has two"),
        ("sdxl", embedding(text_encoder=32, text_encoder_2=40), r"width 40 \(another model\)"),
    ],
)
def test_what_does_not_fit_is_said(kind, given_, words) -> None:
    pipeline = tiny_pipeline(kind)
    with pytest.raises(Mismatch, match=words):
        load_textual_inversions(pipeline, [given_])
    assert len(pipeline.tokenizer) == len(tiny_pipeline(kind).tokenizer)


def test_a_word_the_base_knows_needs_another_name() -> None:
    again = embedding(text_encoder=32)
    with pytest.raises(RequestError, match="'thing', which this base knows already.*'FILE': 'WORD'"):
        load_textual_inversions(tiny_pipeline("sd15"), [again, again])


def test_fields_and_flags() -> None:
    request = Request.parse(
        prompt="x", **given({"embeddings": ("a.pt", "b=1.pt=w", "c.bin=<s>"), "vae": "v"})
    )
    assert request.embeddings == {"a.pt": "", "b=1.pt": "w", "c.bin": "<s>"} and request.vae == "v"
    with pytest.raises(RequestError, match="embeddings is 3, but each is a file and its word"):
        Request.parse(prompt="x", embeddings={"a.pt": 3})
    assert normalize_tokens("A CAT-toy, <S>.", ("cat-toy", "<s>")) == "A cat-toy, <s>."
