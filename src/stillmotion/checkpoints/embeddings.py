"""Textual inversions in files: a word for prompts and its vectors. textual_inversion.py loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillmotion.checkpoints.checkpoint import Source, open_checkpoint
from stillmotion.checkpoints.compatibility import require_kind
from stillmotion.checkpoints.embedding_names import ONE, PLACES, places, word_in
from stillmotion.checkpoints.finite import check_finite
from stillmotion.checkpoints.lora.layouts import BUNDLED
from stillmotion.errors import UnknownFile

if TYPE_CHECKING:
    from torch import Tensor

WORD = "stillmotion.word"
"""Where the header of a file of ours has the word, as the form for SDXL has no place for it."""


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors (n, width) for each text encoder; `name` is that of the file."""

    word: str
    vectors: dict[str, Tensor]
    name: str


def read_embedding(source: Source, word: str = "") -> Embedding:
    """The textual inversion in a file; the word is the one given, the one inside, or the file's name.

    In lower case, as CLIP reads prompts. WrongKind or UnknownFile in words for other files.
    """
    opened = open_checkpoint(source)
    require_kind(opened.info, "embedding")
    header, path = opened.header, opened.path
    parts = places(header)
    if len(set(parts.values())) < len(parts):
        raise UnknownFile(f"{path.name} holds several words ({', '.join(parts)}): give files of one each.")
    state = {name: tensor for name, tensor in opened.state().items() if name in parts}
    check_finite(state, path.name)
    vectors = {parts[name]: tensor.float().reshape(-1, tensor.shape[-1]) for name, tensor in state.items()}
    told = (header.extras.get("name"), header.metadata.get(WORD), *map(word_in, parts))
    inside = next((name for name in told if isinstance(name, str) and name.strip()), path.stem)
    return Embedding((word or inside).strip().lower(), vectors, path.name)


def bundled_embeddings(state: Mapping[str, Tensor], name: str) -> list[Embedding]:
    """The words that a trainer put beside a LoRA: bundle_emb.WORD.clip_l, ...clip_g or another place.

    In lower case, as in `read_embedding`; a key of another form is left out.
    """
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        place = next((place for place in (*PLACES, ONE) if key.endswith(f".{place}")), None)
        if place is None or not key.startswith(BUNDLED):
            continue
        word = key.removeprefix(BUNDLED).removesuffix(f".{place}").strip().lower()
        words.setdefault(word, {})[PLACES.get(place, "text_encoder")] = tensor.float().reshape(
            -1, tensor.shape[-1]
        )
    return [Embedding(word, vectors, name) for word, vectors in words.items() if word]
