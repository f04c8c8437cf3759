"""A new word in training: its vectors are put in by hooks on the token embeddings; the table has no gradient.

The word enters the tokenizers as a finished one does (stillmotion.checkpoints.textual_inversion); the rows it
gets there are the initial ones, and a hook puts the vectors in training in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.checkpoints.embeddings import Embedding
from stillmotion.checkpoints.textual_inversion import ENCODERS, load_textual_inversions
from stillmotion.errors import TrainingError
from stillmotion.training.denoiser import Denoiser

STORED = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Text encoder -> its name in files for SDXL."""


class LearnedEmbedding:
    """`text`, and its `vectors` (n, width) for each text encoder of the denoiser's pipeline."""

    def __init__(self, denoiser: Denoiser, token: str, initializer: str, count: int) -> None:
        pipeline = denoiser.pipeline
        self.text = token.strip().lower()
        encoders: dict[str, Any] = {part: net for part, net in denoiser.parts.items() if part in ENCODERS}
        tokenizers = {part: getattr(pipeline, ENCODERS[part]) for part in encoders}
        for tokenizer in tokenizers.values():
            _check_unknown(tokenizer, self.text)
        start = {
            part: initial_vectors(net, tokenizers[part], initializer, count) for part, net in encoders.items()
        }
        load_textual_inversions(pipeline, [Embedding(self.text, start, f"--token {token}")])
        self.vectors = {part: Parameter(rows.to(denoiser.device)) for part, rows in start.items()}
        names = [self.text, *(f"{self.text}_{number}" for number in range(1, count))]
        for part, net in encoders.items():
            ids = torch.tensor(tokenizers[part].convert_tokens_to_ids(names), device=denoiser.device)
            net.requires_grad_(False).to(denoiser.dtype)  # the table has grown
            net.get_input_embeddings().register_forward_hook(partial(self._after, part, ids))
        denoiser.text.requires_grad = True

    def __str__(self) -> str:
        rows, width = next(iter(self.vectors.values())).shape
        return f"the word {self.text} of {rows} x {width} numbers"

    def state(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file as diffusers has it."""
        rows = {part: tensor.detach().cpu().clone() for part, tensor in weights.items()}
        if len(rows) == 1:
            return {self.text: rows["text_encoder"]}
        return {STORED[part]: tensor for part, tensor in rows.items()}

    def _after(
        self, part: str, ids: Tensor, layer: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """output (b, tokens, width): the rows of the word are the vectors."""
        here = args[0][..., None] == ids
        rows = here.to(output.dtype) @ self.vectors[part].to(output.dtype)
        return torch.where(here.any(-1, keepdim=True), rows, output)


def _check_unknown(tokenizer: Any, word: str) -> None:
    if len(tokenizer(word, add_special_tokens=False).input_ids) == 1:
        raise TrainingError(
            f"token is {word!r}, which the text encoder knows already: choose a new word, such as '<{word}>'."
        )


def initial_vectors(encoder: Any, tokenizer: Any, word: str, count: int) -> Tensor:
    """(count, width) fp32: the known word's own, again and again; TrainingError if it is too long."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or len(ids) > count:
        raise TrainingError(
            f"initializer_word {word!r} is {len(ids)} tokens to the text encoder, but the new word has "
            f"{count}: give a simpler word, or --vectors {max(1, len(ids))}."
        )
    table = encoder.get_input_embeddings().weight.detach().float()
    rows: Tensor = table[[ids[row % len(ids)] for row in range(count)]]
    return rows.clone()
