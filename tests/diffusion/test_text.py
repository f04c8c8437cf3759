"""Encoded text is that of the pipeline's own encode_prompt; what of a text is lost, by its tokens."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from stillmotion.diffusion.text import EMBEDS, Conditioner, lost_text, normalize_tokens, token_limit


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_captions_are_kept_unless_the_encoder_trains(kind) -> None:
    pipeline = tiny_pipeline(kind)
    text = Conditioner(pipeline, torch.bfloat16)
    first = text.encode("a cat")
    assert text.encode("a cat") is first and not first[0].requires_grad
    assert [part.dtype for part in first] == [torch.bfloat16] * (2 if kind == "sdxl" else 1)
    plain = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    expected = pipeline.encode_prompt("a cat", **plain)
    assert torch.equal(first[0], expected[0].bfloat16())
    text.requires_grad = True
    assert text.encode("a cat")[0].requires_grad


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_arguments_of_a_call_follow_the_encoder_as_it_is_now(kind) -> None:
    pipeline = tiny_pipeline(kind)
    text = Conditioner(pipeline)
    first = text.pipeline_arguments("a cat", "blue")
    assert set(first) == set(EMBEDS[: 4 if kind == "sdxl" else 2])
    assert "negative_prompt_embeds" not in text.pipeline_arguments("a cat", "blue", guidance=False)
    pipeline.text_encoder.get_input_embeddings().weight.data.mul_(2)
    assert not torch.equal(text.pipeline_arguments("a cat", "blue")["prompt_embeds"], first["prompt_embeds"])
    skipped = text.pipeline_arguments("a cat", "blue", clip_skip=1)
    assert not torch.equal(skipped["prompt_embeds"], text.pipeline_arguments("a cat")["prompt_embeds"])
    assert "text_model" not in vars(pipeline.text_encoder)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_what_is_lost_is_what_the_encoder_does_not_see(kind) -> None:
    pipeline = tiny_pipeline(kind)
    assert token_limit(pipeline) == 75
    fits = " ".join(["cat"] * 75)
    assert lost_text(pipeline, fits) == ""
    assert lost_text(pipeline, f"{fits} red dog").split() == ["red", "dog"]
    embeds = [Conditioner(pipeline).encode(text)[0] for text in (fits, f"{fits} red dog", f"dog {fits}")]
    assert torch.equal(embeds[0], embeds[1]) and not torch.equal(embeds[0], embeds[2])


@pytest.mark.parametrize("number", [1, 2])
def test_the_shorter_of_two_tokenizers_counts(number) -> None:
    pipeline = tiny_pipeline("sdxl")
    (pipeline.tokenizer, pipeline.tokenizer_2)[number - 1].model_max_length = 12
    assert token_limit(pipeline) == 10
    assert lost_text(pipeline, "cat " * 12).split() == ["cat"] * 2
    pipeline.tokenizer = None  # as in SDXL's refiner
    assert lost_text(pipeline, "cat " * 12).split() == (["cat"] * 2 if number == 2 else [])


@pytest.mark.parametrize("text", ["İ" * 40, "\u0958" * 26, "🐻" * 19, "?" * 80, "a" * 75, "cat " * 75])
def test_letters_that_grow_when_they_are_normalized(text) -> None:
    """Some of them are shorter than the limit as they are typed, in bytes."""
    pipeline = tiny_pipeline()
    ids = pipeline.tokenizer(text, truncation=False, verbose=False).input_ids
    assert bool(lost_text(pipeline, text)) == (len(ids) > 77)


def test_words_are_found_in_any_case() -> None:
    assert normalize_tokens("A CAT-toy, <S>.", ("cat-toy", "<s>")) == "A cat-toy, <s>."
    assert normalize_tokens(r"a C:\1 dog", (r"c:\1",)) == r"a c:\1 dog"
