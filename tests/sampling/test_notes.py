"""Notes on prompts: what is cut, and what other programs would read otherwise."""

from __future__ import annotations

import time

import pytest
from request.test_concepts import KNOWN
from tiny import tiny_motion, tiny_pipeline

from stillmotion.errors import AttachError, RequestError
from stillmotion.request import Request
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.notes import prompt_notes


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_what_is_cut_is_said_of_both_prompts(pipeline, field: str) -> None:
    def notes(text: str) -> list[str]:
        return list(prompt_notes(pipeline, Request(**{"prompt": "a cat", field: text})))

    assert notes("a dog " * 37) == []
    (note,) = notes("a dog " * 37 + "red blue house apple")
    assert f"the end of the {field.replace('_', ' ')} is lost: 'blue house apple'" in note.replace("red ", "")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a (cat:1.3)", "(word:1.3)"),
        ("a cat <lora:style:0.8>", "`loras=`"),
        ("a cat BREAK a dog", "BREAK"),
        ("a [cat:dog:0.5]", "[from:to:when]"),
        ("a cat (red), [blue] at 1:2, break", None),
    ],
)
def test_spellings_of_other_programs(pipeline, text: str, note: str | None) -> None:
    found = list(prompt_notes(pipeline, Request(prompt=text)))
    assert found == [] if note is None else "literally" in found[0] and note in found[0]


def test_20000_words_do_not_hang(pipeline) -> None:
    start = time.monotonic()
    text = " ".join(f"zq{number:03x}" for number in range(16_000))
    assert list(prompt_notes(pipeline, Request(prompt=text[:100_000])))
    assert len(KNOWN.hint(text)) < 400 and KNOWN.style_hint(text) is None
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a rocket, watercolor style", "'watercolor'"),
        ("a rocket in the style of monet", None),
        ("a rocket in oil painting style", "'oil painting'"),
        ("a rocket, 3d render style", None),
        ("a rocket", None),
    ],
)
def test_unknown_styles(prompt: str, unknown: str | None) -> None:
    hint = KNOWN.style_hint(prompt)
    assert hint is None if unknown is None else unknown in hint and "3d render, flat color" in hint


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_bounds_of_the_models(kind: str) -> None:
    ours = Animator(tiny_pipeline(kind), tiny_motion())
    with pytest.raises(AttachError, match="not 1000000: use at most 32"):
        ours.request("a cat", frames=10**6)
    most = 3 if kind == "sd15" else 2
    ours.sample(Request(prompt="a cat", clip_skip=most, frames=1, num_inference_steps=1))
    assert "text_model" not in vars(ours.pipeline.text_encoder)
    with pytest.raises(RequestError, match=f"clip_skip is {most + 1}, .*at most {most}"):
        ours.request("a cat", clip_skip=most + 1)
