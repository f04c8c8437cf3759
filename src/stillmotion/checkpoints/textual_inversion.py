"""Textual inversions in a pipeline: loaded by diffusers' own loader, and found in prompts.

A word of several vectors is several tokens; diffusers spells them out, but only where the prompt has the word
in exactly the case of the token. CLIP reads lower case, so words and prompts are made so here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.checkpoints.embeddings import Embedding
from stillmotion.checkpoints.file_kinds import BASES, TEXT_WIDTHS
from stillmotion.errors import Mismatch, RequestError

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline

ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Text encoders of a pipeline and the tokenizer of each."""


def load_textual_inversions(pipeline: Pipeline, embeddings: Sequence[Embedding]) -> tuple[str, ...]:
    """Teaches the pipeline's text encoders these words, and returns them.

    Mismatch where the vectors are not as wide as the encoder or are not for the encoders there are;
    RequestError for a word that the pipeline knows already.
    """
    for embedding in embeddings:
        _check_compatible(pipeline, embedding)
        for part in embedding.vectors:
            _check_new(getattr(pipeline, ENCODERS[part]), embedding)
        for part, vectors in embedding.vectors.items():
            with torch.random.fork_rng(devices=[]):  # growing the table draws numbers, which are not kept
                pipeline.load_textual_inversion(
                    {embedding.word: vectors},
                    tokenizer=getattr(pipeline, ENCODERS[part]),
                    text_encoder=getattr(pipeline, part),
                )
    return tuple(embedding.word for embedding in embeddings)


def unused_tokens(words: Iterable[str], *texts: str) -> list[str]:
    """A hint for each word that is in none of the texts."""
    said = " ".join(texts).lower()
    return [
        f"The textual inversion {word!r} was loaded, but stands neither in the prompt nor in the negative "
        "prompt, so it does nothing."
        for word in words
        if word not in said
    ]


def _check_compatible(pipeline: Any, embedding: Embedding) -> None:
    encoders = {
        part: getattr(pipeline, part) for part in ENCODERS if getattr(pipeline, part, None) is not None
    }
    if embedding.vectors.keys() != encoders.keys():
        parts = {1: "one text encoder", 2: "two text encoders (clip_l and clip_g)"}
        raise Mismatch(
            f"{embedding.name} is a textual inversion for {parts[len(embedding.vectors)]}, but this base has "
            f"{parts[len(encoders)]}: use one made for it."
        )
    for part, vectors in embedding.vectors.items():
        width, ours = vectors.shape[-1], encoders[part].config.hidden_size
        if width != ours:
            made_for = BASES.get(TEXT_WIDTHS.get(width, ""), "another model")
            raise Mismatch(
                f"{embedding.name} is a textual inversion of width {width} ({made_for}), but the text "
                f"encoder of this base is {ours} wide: use one made for it."
            )


def _check_new(tokenizer: Any, embedding: Embedding) -> None:
    vocabulary = tokenizer.get_vocab()
    if embedding.word in vocabulary or f"{embedding.word}_1" in vocabulary:
        raise RequestError(
            f"{embedding.name} is for the word {embedding.word!r}, which this base knows already: give it "
            "another one with `embeddings={'FILE': 'WORD'}`."
        )
