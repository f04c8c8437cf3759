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
from typing import TYPE_CHECKING

import numpy as np

from stillmotion.checkpoints.files import read_json

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MERGES = Path(__file__).with_name("configs") / "clip" / "merges.zlib"
MARKS = ("<|startoftext|>", "<|endoftext|>")
OWN = ("tokenizer.json", "vocab.json")
"""Files with a vocabulary in a tokenizer's folder."""
CLIPS = "3800df9a38f5abc0eb8edd66c3f9f7007c6d046904c213cc6354b3bf7b18d3a1"
"""SHA-256 of tokenizer.json as transformers 5 saves CLIP's."""
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
    """The CLIP tokenizer with the settings (padding) of a folder, and its vocabulary or else CLIP's."""
    settings = read_json(folder / "tokenizer_config.json")
    known = {key: settings[key] for key in ("pad_token", "model_max_length") if key in settings}
    if any((folder / name).is_file() for name in OWN) and not _is_clips(folder, settings):
        return _read(folder, known)
    vocabulary, merges = clip_vocabulary()
    from transformers import CLIPTokenizer

    if "vocab" in inspect.signature(CLIPTokenizer.__init__).parameters:  # transformers 5
        return CLIPTokenizer(vocab=vocabulary, merges=merges, **known)
    with TemporaryDirectory() as place:
        text = "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in merges)])
        Path(place, "merges.txt").write_text(text + "\n", encoding="utf-8")
        Path(place, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        return _read(Path(place), known)


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


def _read(folder: Path, settings: dict[str, object]) -> CLIPTokenizer:
    from transformers import CLIPTokenizerFast  # transformers 5 has this one only, and calls it CLIPTokenizer

    return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True, **settings)
