"""Captions that are longer than the text encoder reads are counted and said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stillmotion.diffusion.text import note_cut_captions


class Bytes:
    """A tokenizer of one token a byte, with a token at each end."""

    model_max_length = 12

    def __call__(self, text, **options):
        return SimpleNamespace(input_ids=[0, *text.encode(), 0])

    def decode(self, ids, **options):
        return bytes(ids).decode(errors="replace")


CASES = [(["x" * 10], 0), (["x" * 11, "y" * 99, "a"], 2), (["🐻🐻🐻"], 1)]


@pytest.mark.parametrize(("captions", "count"), CASES)
def test_captions_that_are_cut_are_said(captions, count):
    said = []
    note_cut_captions(SimpleNamespace(tokenizer=Bytes()), captions, said.append)
    assert len(said) == bool(count)
    assert all(f"reads 10 tokens of a caption; the end of {count} of them is lost" in note for note in said)
