"""Textual inversions in files: a word for prompts and the vectors it stands for. Puts them nowhere.

{"string_to_param": {"*": (n, w)}, "name": word}    .pt of the original and of the WebUI
{"<word>": (w,) or (n, w)}                          .bin and .safetensors of diffusers
{"emb_params": (n, w)}                              .safetensors of the WebUI
{"clip_l": (n, 768), "clip_g": (n, 1280)}           both text encoders of SDXL
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillmotion.errors import UnknownFile
from stillmotion.weights.files import read_header, read_state
from stillmotion.weights.finite import check_finite
from stillmotion.weights.fit import expect
from stillmotion.weights.hub import locate
from stillmotion.weights.identify import identify
from stillmotion.weights.loras.names import BUNDLED

if TYPE_CHECKING:
    from torch import Tensor

PLACES = {
    "string_to_param.*": "text_encoder",
    "emb_params": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
}
"""Names that are no word -> the text encoder the vectors are for."""

WORD = "stillmotion.word"
"""Where the header of a file of ours has the word, as the form for SDXL has no place for it."""

_TOKEN = "string_to_token.*"
"""Number of the token that stood for the word in training; of no use later."""


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors (n, width) for each text encoder; `name` is that of the file."""

    word: str
    vectors: dict[str, Tensor]
    name: str


def read_embedding(source: str | Path, word: str = "") -> Embedding:
    """The textual inversion in a file; the word is the one given, the one inside, or the file's name.

    In lower case, as CLIP reads prompts. WrongKind or UnknownFile in words for other files.
    """
    path = locate(source)
    expect(identify(path), "embedding")
    state = {name: tensor for name, tensor in read_state(path).items() if name != _TOKEN}
    check_finite(state, path.name)
    header = read_header(path)
    told = header.extras.get("name") or header.metadata.get(WORD)
    inside = [name for name in state if name not in PLACES] or [told]
    vectors = {
        PLACES.get(name, "text_encoder"): tensor.float().reshape(-1, tensor.shape[-1])
        for name, tensor in state.items()
    }
    if len(vectors) < len(state):
        raise UnknownFile(f"{path.name} holds several words ({', '.join(state)}): give files of one each.")
    word = word or (inside[0] if isinstance(inside[0], str) else "") or path.stem
    return Embedding(word.strip().lower(), vectors, path.name)


def bundled_embeddings(state: Mapping[str, Tensor], name: str) -> list[Embedding]:
    """The words that a trainer put beside a LoRA: bundle_emb.WORD.clip_l, ...clip_g or another place.

    In lower case, as in `read_embedding`; a key of another form is left out.
    """
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        place = next((place for place in PLACES if key.endswith(f".{place}")), None)
        if place is None or not key.startswith(BUNDLED):
            continue
        word = key.removeprefix(BUNDLED).removesuffix(f".{place}").strip().lower()
        words.setdefault(word, {})[PLACES[place]] = tensor.float().reshape(-1, tensor.shape[-1])
    return [Embedding(word, vectors, name) for word, vectors in words.items() if word]
