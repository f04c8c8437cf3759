"""Captions as what the UNet takes, by the pipeline's own `encode_prompt`; of frozen encoders each is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

CACHE_SIZE = 20_000


class Conditioner:
    """Text to UNet arguments for a Stable Diffusion or SDXL pipeline.

    Captions are encoded one at a time, so that the numbers do not depend on what else is in the batch. While
    something in the text encoders trains, `live` must be true: nothing is kept, and gradients flow.
    """

    def __init__(self, pipeline: Any, dtype: torch.dtype) -> None:
        self.pipeline = pipeline
        self.dtype = dtype
        self.xl = hasattr(pipeline, "text_encoder_2")
        self.requires_grad = False
        self._known: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    def encode(self, caption: str) -> tuple[Tensor, ...]:
        """(1, tokens, width) embeddings, and for SDXL (1, width) pooled ones."""
        if self.requires_grad:
            return self._encoded(caption)
        if caption not in self._known:
            with torch.no_grad():
                self._known[caption] = self._encoded(caption)
            if len(self._known) > CACHE_SIZE:
                self._known.popitem(last=False)
        self._known.move_to_end(caption)
        return self._known[caption]

    def _encoded(self, caption: str) -> tuple[Tensor, ...]:
        encoded = self.pipeline.encode_prompt(
            prompt=caption,
            device=self.pipeline.unet.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        kept = (encoded[0], encoded[2]) if self.xl else (encoded[0],)
        return tuple(part.to(self.dtype) for part in kept)

    def unet_arguments(self, captions: Sequence[str], frames: int, pixels: tuple[int, int]) -> dict[str, Any]:
        """Keyword arguments of the UNet for clips with these captions: every frame has its clip's text.

        `pixels` are height and width, which SDXL is told.
        """
        parts = [
            torch.cat(rows).repeat_interleave(frames, 0)
            for rows in zip(*map(self.encode, captions), strict=True)
        ]
        arguments: dict[str, Any] = {"encoder_hidden_states": parts[0]}
        if self.xl:
            times = torch.tensor([[*pixels, 0, 0, *pixels]], dtype=self.dtype)
            times = times.to(parts[1].device).repeat(len(parts[1]), 1)
            arguments["added_cond_kwargs"] = {"text_embeds": parts[1], "time_ids": times}
        return arguments


def note_cut_captions(pipeline: Any, captions: Iterable[str], log: Callable[[str], None]) -> None:
    """Says how many captions are longer than the text encoder reads; their ends teach nothing."""
    tokenizer = pipeline.tokenizer
    limit = tokenizer.model_max_length
    long = [text for text in dict.fromkeys(captions) if len(text.encode()) > limit - 2]  # a byte or more each
    cut = [text for text in long if len(tokenizer(text, truncation=False, verbose=False).input_ids) > limit]
    if cut:
        log(
            f"Note: the text encoder reads {limit - 2} tokens of a caption; the end of {len(cut)} of them is "
            f"lost, such as {cut[0][:60]!r}..."
        )
