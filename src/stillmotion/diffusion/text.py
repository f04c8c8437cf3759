"""Text as what the UNet takes, by the pipeline's own `encode_prompt`; and how much of a text is read.

The tokenizer of CLIP reads 77 tokens, two of which mark the ends: what follows is cut off. SDXL has two
tokenizers and two encoders, the second of which also gives a pooled vector.
"""

from __future__ import annotations

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stillmotion.diffusion.pipeline import Pipeline

CACHE_SIZE = 20_000
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` returns, as arguments of a pipeline's call; the last two are SDXL's."""

TOKENIZERS = ("tokenizer", "tokenizer_2")


class Conditioner:
    """Text to arguments of a UNet or of a pipeline, for Stable Diffusion and SDXL.

    Captions are encoded one at a time, so that the numbers do not depend on what else is in the batch. While
    something in the text encoders trains, `requires_grad` must be true: nothing is kept, and gradients flow.

    Args:
        pipeline: has the tokenizers, the text encoders and `encode_prompt`.
        dtype: of the captions for training; default: as they are encoded.
        words: textual inversions, which are found in any case of letters.
    """

    def __init__(
        self, pipeline: Pipeline, dtype: torch.dtype | None = None, words: Sequence[str] = ()
    ) -> None:
        self.pipeline = pipeline
        self.dtype = dtype
        self.words = tuple(words)
        self.requires_grad = False
        self._known: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    @torch.no_grad()
    def pipeline_arguments(
        self, prompt: str, negative_prompt: str = "", guidance: bool = True, clip_skip: int | None = None
    ) -> dict[str, Tensor]:
        """A prompt as keyword arguments of the pipeline's call, (1, tokens, width) each, pooled (1, width).

        Nothing is kept: what is attached to the encoders may change from clip to clip.

        Args:
            prompt: what to draw.
            negative_prompt: what to draw away from; "" is no text, for which SDXL may have zeros.
            guidance: whether the negative prompt is needed at all.
            clip_skip: how many of the encoder's last layers are left out.
        """
        negative = normalize_tokens(negative_prompt, self.words) or None
        encoded = self._encode(normalize_tokens(prompt, self.words), negative, guidance, clip_skip)
        named = zip(EMBEDS, encoded, strict=False)
        return {name: embeds for name, embeds in named if embeds is not None}

    def encode(self, caption: str) -> tuple[Tensor, ...]:
        """(1, tokens, width) embeddings, and for SDXL (1, width) pooled ones; kept if nothing trains."""
        if self.requires_grad:
            return self._caption(caption)
        if caption not in self._known:
            with torch.no_grad():
                self._known[caption] = self._caption(caption)
            if len(self._known) > CACHE_SIZE:
                self._known.popitem(last=False)
        self._known.move_to_end(caption)
        return self._known[caption]

    def unet_arguments(self, captions: Sequence[str], frames: int, pixels: tuple[int, int]) -> dict[str, Any]:
        """Keyword arguments of the UNet for clips with these captions: every frame has its clip's text.

        Args:
            captions: one of each clip.
            frames: of each clip.
            pixels: height and width, which SDXL is told.
        """
        parts = [
            torch.cat(rows).repeat_interleave(frames, 0)
            for rows in zip(*map(self.encode, captions), strict=True)
        ]
        arguments: dict[str, Any] = {"encoder_hidden_states": parts[0]}
        if len(parts) > 1:
            times = torch.tensor([[*pixels, 0, 0, *pixels]], dtype=parts[1].dtype, device=parts[1].device)
            arguments["added_cond_kwargs"] = {
                "text_embeds": parts[1],
                "time_ids": times.repeat(len(parts[1]), 1),
            }
        return arguments

    def _caption(self, caption: str) -> tuple[Tensor, ...]:
        encoded = self._encode(caption, None, guidance=False)
        return tuple(part.to(self.dtype or part.dtype) for part in encoded[::2] if part is not None)

    def _encode(
        self, prompt: str, negative: str | None, guidance: bool, clip_skip: int | None = None
    ) -> Sequence[Tensor | None]:
        """What EMBEDS names; two of them without a pooled vector."""
        extra = {} if clip_skip is None else {"clip_skip": clip_skip}
        with _text_model_named(self.pipeline):
            encoded: Sequence[Tensor | None] = self.pipeline.encode_prompt(
                prompt=prompt,
                device=self.pipeline._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=guidance,
                negative_prompt=negative,
                **extra,
            )
        return encoded


def token_limit(pipeline: Pipeline) -> int:
    """How many tokens of a text the pipeline reads, besides those that mark the ends."""
    return min(tokenizer.model_max_length for tokenizer in _tokenizers(pipeline)) - 2


def lost_text(pipeline: Pipeline, text: str) -> str:
    """The part of a prompt or caption behind the last token that is read; "" if all of it is.

    Where the pipeline has several tokenizers: what at least one of them does not read.
    """
    lost = ""
    for tokenizer in _tokenizers(pipeline):
        convert = getattr(pipeline, "maybe_convert_prompt", None)  # a textual inversion may be several tokens
        spelled = text if convert is None else convert(text, tokenizer)
        limit = tokenizer.model_max_length
        if len(unicodedata.normalize("NFC", spelled).lower().encode("utf-8", "replace")) <= limit - 2:
            continue  # a token is a byte or more
        ids = tokenizer(spelled, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            lost = max(lost, tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True), key=len)
    return lost


def note_cut_captions(pipeline: Pipeline, captions: Iterable[str], log: Callable[[str], None]) -> None:
    """Says how many captions are longer than the text encoder reads; their ends teach nothing."""
    cut = [text for text in dict.fromkeys(captions) if lost_text(pipeline, text)]
    if cut:
        log(
            f"Note: the text encoder reads {token_limit(pipeline)} tokens of a caption; "
            f"the end of {len(cut)} of them is lost, such as {cut[0][:60]!r}..."
        )


def normalize_tokens(text: str, words: Iterable[str]) -> str:
    """The text with each of the words in lower case, wherever it stands."""
    for word in words:
        text = re.sub(re.escape(word), word.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


def _tokenizers(pipeline: Pipeline) -> list[Any]:
    found = (getattr(pipeline, name, None) for name in TOKENIZERS)
    return [tokenizer for tokenizer in found if tokenizer is not None]


@contextmanager
def _text_model_named(pipeline: Pipeline) -> Iterator[None]:
    """`text_encoder.text_model` is there, where diffusers looks for it when clip_skip is given.

    transformers 5.6 took it out of CLIPTextModel, whose layers are now the model's own.
    """
    encoder = getattr(pipeline, "text_encoder", None)
    missing = encoder is not None and not hasattr(encoder, "text_model")
    if missing:
        encoder.__dict__["text_model"] = encoder  # not by setattr: it would become a part of itself
    try:
        yield
    finally:
        if missing:
            del encoder.__dict__["text_model"]
