"""The tokenizer of CLIP, which all Stable Diffusion models share: its vocabulary comes with the library.

The 49,408 tokens of Radford et al. 2021 are 256 bytes, the same 256 at the end of a word, one token for each
of 48,894 merges of two earlier tokens, and two marks. So the merges are enough:
`configs/clip/merges.zlib` holds for each the numbers of its two tokens, as four rows of bytes (high and low
byte of the first, then of the second).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from stillmotion import foreign
from stillmotion.checkpoints.files import read_json
from stillmotion.errors import Damaged

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from tokenizers import AddedToken
    from transformers import CLIPTokenizer

MERGES = Path(__file__).with_name("configs") / "clip" / "merges.zlib"
MARKS = ("<|startoftext|>", "<|endoftext|>")
OWN = ("tokenizer.json", "vocab.json")
"""Files with a vocabulary in a tokenizer's folder."""
CLIPS = "3800df9a38f5abc0eb8edd66c3f9f7007c6d046904c213cc6354b3bf7b18d3a1"
"""SHA-256 of tokenizer.json as transformers 5 saves CLIP's."""
USUAL_LENGTH = 77
LONGEST = 10_000
"""Tokens of a text: what CLIP reads, and above what a tokenizer says nothing (some say 10**30)."""
MOST_TOKENS = 2**20
NOTES = ("backend", "is_local", "local_files_only", "tokenizer_class", "name_or_path", "processor_class")
"""Settings in tokenizer_config.json that change no token."""


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens with their numbers, and its merges in order."""
    high, low, high_2, low_2 = (
        np.frombuffer(zlib.decompress(MERGES.read_bytes()), np.uint8).reshape(4, -1).astype(int)
    )
    pairs = zip(256 * high + low, 256 * high_2 + low_2, strict=True)
    tokens = [chr(code) for code in _byte_characters()]
    tokens += [token + "</w>" for token in tokens]
    merges = []
    for first, second in pairs:
        merges.append((tokens[first], tokens[second]))
        tokens.append(tokens[first] + tokens[second])
    return {token: number for number, token in enumerate([*tokens, *MARKS])}, merges


def _byte_characters() -> list[int]:
    """Code points that stand for the 256 bytes, in CLIP's order: the printable ones, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + list(range(256, 256 + 256 - len(printable)))


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer with the settings (padding) of a folder, and its vocabulary or else CLIP's.

    Raises `Damaged` for files that are no tokenizer of CLIP's kind: its pieces are read as data and checked
    before they are given to the libraries, which trust such files.
    """
    settings = read_json(folder / "tokenizer_config.json")
    known = _checked_settings(settings, folder)
    if any((folder / name).is_file() for name in OWN) and not _is_clips(folder, settings):
        return _read(folder, known)
    return _made(*clip_vocabulary(), known)


def _made(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], settings: dict[str, Any]
) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    if "vocab" in inspect.signature(CLIPTokenizer.__init__).parameters:  # transformers 5
        return CLIPTokenizer(vocab=vocabulary, merges=merges, **settings)  # type: ignore[arg-type]
    from transformers import CLIPTokenizerFast  # type: ignore[attr-defined]

    with TemporaryDirectory() as place:
        text = "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in merges)])
        Path(place, "merges.txt").write_text(text + "\n", encoding="utf-8")
        Path(place, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(Path(place), local_files_only=True, **settings)


def _is_clips(folder: Path, settings: Mapping[str, object]) -> bool:
    """Whether a folder has exactly CLIP's tokenizer.json and nothing that adds to it.

    Then nothing of it need be parsed, which transformers does several times (0.4 s).
    """
    files = {file.name for file in folder.iterdir()}
    marks = {"bos_token": MARKS[0], "eos_token": MARKS[1], "unk_token": MARKS[1]}
    return (
        files <= {"tokenizer.json", "tokenizer_config.json"}
        and settings.keys() <= {"pad_token", "model_max_length", *marks, *NOTES}
        and all(settings.get(key, mark) == mark for key, mark in marks.items())
        and hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == CLIPS
    )


def _checked_settings(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Special tokens and length of a tokenizer, as far as its configs say them."""
    extra = folder / "special_tokens_map.json"
    mapped = read_json(extra) if extra.is_file() else {}
    # as transformers reads them: the map wins over configs that do not list their added tokens
    said = {**mapped, **settings} if "added_tokens_decoder" in settings else {**settings, **mapped}
    known: dict[str, Any] = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        word = said.get(key)
        word = word.get("content") if isinstance(word, dict) else word
        if word is not None and not (isinstance(word, str) and word and word.isprintable()):
            raise Damaged(
                f"{folder}/tokenizer_config.json has {key} = {str(word)[:60]!r}, which is no token."
            )
        known |= {key: word} if word else {}
    length = said.get("model_max_length", 0)
    if isinstance(length, bool) or not isinstance(length, (int, float)) or length < 0:
        raise Damaged(f"{folder}/tokenizer_config.json has model_max_length = {str(length)[:60]}.")
    return known | {"model_max_length": int(length) if 0 < length < LONGEST else USUAL_LENGTH}


def _read(folder: Path, settings: dict[str, Any]) -> CLIPTokenizer:
    """The tokenizer whose vocabulary is in the files of a folder, with the tokens added to it."""
    try:
        vocabulary, merges, added = _pieces(folder)
        _check_pieces(vocabulary, merges)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise Damaged(f"The tokenizer in {folder} cannot be read ({error!s:.200}).") from error
    said = _checked_settings(read_json(folder / "tokenizer_config.json"), folder)
    tokenizer = _made(vocabulary, merges, said | settings)
    for number, token in sorted(added.items()):
        if token.content not in vocabulary:
            tokenizer.add_tokens([token])
            if tokenizer.convert_tokens_to_ids(token.content) != number:
                raise Damaged(f"The tokenizer in {folder} has no token before number {number}.")
    return tokenizer


def _pieces(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[int, AddedToken]]:
    """Vocabulary, merges and added tokens by number, of tokenizer.json or the files before it."""
    tokens: dict[str, dict[str, Any]] = {}
    if (folder / "tokenizer.json").is_file():
        content = read_json(folder / "tokenizer.json")
        model = content["model"]
        if model.get("end_of_word_suffix", "</w>") != "</w>":
            raise ValueError("it does not mark the ends of words as CLIP does")
        vocabulary, merges = model["vocab"], model["merges"]
        tokens = {str(token["id"]): token for token in content.get("added_tokens") or ()}
    else:
        vocabulary = read_json(folder / "vocab.json")
        lines = foreign.read_text(folder / "merges.txt").split("\n")
        merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
        if (file := folder / "added_tokens.json").is_file():
            tokens = {str(number): {"content": word} for word, number in read_json(file).items()}
        tokens |= read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    return vocabulary, pairs, {int(number): _added(token) for number, token in tokens.items()}


def _added(token: Mapping[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    if not isinstance(token["content"], str) or not token["content"]:
        raise ValueError(f"an added token is {token['content']!r:.60}")
    flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
    token["content"].encode()  # no halves of surrogate pairs
    return AddedToken(token["content"], **{name: bool(token[name]) for name in flags if name in token})


def _check_pieces(vocabulary: Any, merges: list[Any]) -> None:
    """ValueError unless this is a byte-pair encoding: numbered tokens, and merges of tokens to tokens."""
    numbers = vocabulary.values()
    if not all(type(number) is int and 0 <= number < MOST_TOKENS for number in numbers):
        raise ValueError("its vocabulary has numbers that are none of tokens")
    if len(set(numbers)) < len(vocabulary) or not vocabulary:
        raise ValueError("two tokens of its vocabulary have one number, or it has none")
    "".join(vocabulary).encode()
    for pair in merges:
        first, second = pair
        if first not in vocabulary or second not in vocabulary or first + second not in vocabulary:
            raise ValueError(f"the merge {first!r:.40} {second!r:.40} is not of its vocabulary")


def check_tokens(pipeline: DiffusionPipeline, source: str) -> None:
    """Damaged if a tokenizer of a pipeline gives numbers or lengths that its text encoder has not."""
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        made, reads = getattr(pipeline, tokenizer, None), getattr(pipeline, encoder, None)
        if made is None or reads is None:
            continue
        rows, places = reads.get_input_embeddings().num_embeddings, reads.config.max_position_embeddings
        if len(made) > rows or made.model_max_length > places:
            raise Damaged(
                f"The {tokenizer} of {source} has {len(made)} tokens and makes texts of up to "
                f"{made.model_max_length}, but its {encoder} knows {rows} and reads {places}: they are of "
                "two models."
            )
