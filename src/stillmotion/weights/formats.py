"""The formats weights come in, by their first bytes; and safetensors. Knows no names of keys and no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillmotion.atomic import FolderKind
from stillmotion.errors import Damaged, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Format = Literal["safetensors", "torch"]

_WEIGHTS = r"(diffusion_pytorch_)?model([.-][\w.-]+)?\.safetensors(\.index\.json)?"
_TOKENIZER = (
    r"(vocab|tokenizer|added_tokens|special_tokens_map)\.json|merges\.txt|[a-z]+\.model|chat_template\.\w+"
)
MODEL_FOLDER = FolderKind(
    "a model",
    ("model_index.json", "config.json", "pytorch_lora_weights.safetensors"),
    rf"model_index\.json|pytorch_lora_weights\.safetensors|([a-z]\w*/)?({_WEIGHTS}|{_TOKENIZER}|(\w+_)?config\.json)",
)
"""A pipeline, motion module or LoRA as diffusers saves it."""


def sniff(path: Path) -> Format:
    """The format of a file by its first bytes; `WeightsError` or `Damaged` in words if it is none of ours."""
    if not path.exists():
        raise WeightsError(f"There is no file {path}.")
    size = path.stat().st_size
    if size == 0:
        raise Damaged(f"{path.name} is empty (0 bytes). Download it again.")
    with path.open("rb") as file:
        head = file.read(512)
    if head[5:9] == b"\0\0\0{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise Damaged(
            f"{path.name} is a git-lfs pointer of {size} bytes, not the weights themselves. "
            "Run `git lfs pull` in its folder, or download the file from its page."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise Damaged(
            f"{path.name} is a web page saved under the name of a model (the site may have asked for a "
            "login). "
            "Download the file itself."
        )
    if text.startswith(b"{"):
        raise Damaged(f"{path.name} is a text file (JSON), not weights. Download the file itself.")
    if head.startswith(b"GGUF"):
        raise WeightsError(
            f"{path.name} is a GGUF file, which is not supported. Use the .safetensors of this model."
        )
    raise Damaged(f"{path.name} is not a file of weights: neither safetensors nor a torch checkpoint.")


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the size of the file; no tensor is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise _truncated(path, size, "even its header is incomplete")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise Damaged(
                f"{path.name} has a header that cannot be read ({error}). Download it again."
            ) from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise _truncated(path, size, f"its header announces {expected:,} bytes")
    return header


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped."""
    safetensors_header(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path.name} is not a valid safetensors file ({error}). Download it again.") from error


def _truncated(path: Path, size: int, why: str) -> Damaged:
    return Damaged(f"{path.name} is truncated: it has {size:,} bytes but {why}. Download it again.")
