"""What a user should know of his prompts before waiting: words lost, or read otherwise than meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from stillmotion.checkpoints.textual_inversion import unused_tokens
from stillmotion.diffusion.pipeline import Pipeline
from stillmotion.diffusion.text import lost_text, normalize_tokens, token_limit
from stillmotion.request import Request

LITERAL = {
    r"\([^()]*:\s*\d*\.?\d+\s*\)": "weights as in (word:1.3)",
    r"<(?:lora|lyco|hypernet):[^<>]*>": "<lora:...>; name the file as a LoRA instead (`loras=`)",
    r"\bBREAK\b": "BREAK",
    r"\[[^\[\]:]*:[^\[\]:]*:\s*\d*\.?\d+\s*\]": "[from:to:when]",
}
"""Spellings of other programs that are text like any other here."""


def prompt_notes(pipeline: Pipeline, request: Request, words: Sequence[str] = ()) -> Iterator[str]:
    """A sentence for each: unused words of textual inversions, spellings read literally, text that is cut."""
    yield from unused_tokens(words, request.prompt, request.negative_prompt)
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        read = [what for pattern, what in LITERAL.items() if re.search(pattern, text)]
        if read:
            yield f"The {name} is read literally, which may not be meant: {'; '.join(read)}."
        if lost := lost_text(pipeline, normalize_tokens(text, words)):
            limit = token_limit(pipeline)
            yield f"The text encoder reads {limit} tokens; the end of the {name} is lost: {_short(lost)!r}."


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"
