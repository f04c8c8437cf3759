"""The formats weights come in, by their first bytes; and safetensors."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from stillmotion.atomic import FolderKind
from stillmotion.errors import Damaged, WeightsError
from stillmotion.foreign import parse_json, printable

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

HEADER_BYTES = 16 * 2**20
"""Of a safetensors header, far above any in use (the largest checkpoints have 1 MB)."""

_SAFETENSORS = "Use the .safetensors of this model."

FOREIGN = {
    b"GGUF": ("a GGUF file (quantised weights for llama.cpp's kin)", _SAFETENSORS),
    b"\x89HDF\r\n": ("an HDF5 file (weights of Keras)", _SAFETENSORS),
    b"\x93NUMPY": ("a NumPy array", _SAFETENSORS),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it and name the file of weights in it."),
    b"Rar!": ("a RAR archive", "Unpack it and name the file of weights in it."),
    b"\x1f\x8b": ("a gzip archive", "Unpack it and name the file of weights in it."),
    b"\x89PNG": ("an image (PNG)", "Name a file of weights, such as a .safetensors."),
    b"\xff\xd8\xff": ("an image (JPEG)", "Name a file of weights, such as a .safetensors."),
    b"GIF8": ("an animation (GIF)", "Name a file of weights, such as a .safetensors."),
}
"""What is saved or shared beside weights, by its first bytes; and what to do with it."""


def open_regular(path: Path) -> BinaryIO:
    """The file, open for reading; `WeightsError` or `Damaged` if it is missing, empty or no regular file."""
    if not path.exists():
        raise WeightsError(f"There is no file {path}.")
    if not path.is_file():
        raise WeightsError(
            f"{path} is no regular file (a folder, a pipe or a device), so it holds no weights."
        )
    if path.stat().st_size == 0:
        raise Damaged(f"{path.name} is empty (0 bytes). Download it again.")
    try:
        return path.open("rb")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error


def sniff(path: Path, stream: BinaryIO) -> Format:
    """The format of an open file by its first bytes; `WeightsError` or `Damaged` if it is none of ours."""
    size = path.stat().st_size
    try:
        stream.seek(0)
        head = stream.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error
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
    for mark, (what, instead) in FOREIGN.items():
        if head.startswith(mark):
            raise WeightsError(f"{path.name} is {what}, not weights that can be read here. {instead}")
    if head.startswith(b"\x08") and b"pytorch" in head or path.suffix == ".onnx":
        raise WeightsError(f"{path.name} is an ONNX model, which is not supported. {_SAFETENSORS}")
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        raise WeightsError(f"{path.name} is a tar archive. Unpack it and name the file of weights in it.")
    raise Damaged(f"{path.name} is not a file of weights: neither safetensors nor a torch checkpoint.")


class Safetensors:
    """A safetensors file, opened once: the header is checked by the library's own reader, tensors are mapped.

    `header` is whole: every entry has a shape, a dtype and offsets that lie in the file. Raises `Damaged`.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self.header = _checked_header(path, stream)
        self._mapped = self._open(stream)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, memory-mapped."""
        from safetensors import SafetensorError, safe_open

        path = self._path
        try:
            mapped = self._mapped or safe_open(path, framework="pt")
            return {name: mapped.get_tensor(name) for name in mapped.offset_keys()}
        except SafetensorError as error:
            raise _invalid(path, error) from error
        except (OSError, RuntimeError) as error:  # an operating system that cannot map the file
            size = f"{path.stat().st_size:,} bytes"
            raise WeightsError(f"{path.name} ({size}) cannot be mapped into memory ({error}).") from error

    def _open(self, stream: BinaryIO) -> Any:
        """The library's reader, which maps all tensors; None where it has only checked the header."""
        from safetensors import SafetensorError, safe_open

        path = self._path
        try:
            if "torch" in sys.modules:  # else numpy's reader will do, as torch takes a second to import
                with suppress(
                    RuntimeError
                ):  # larger than can be mapped: its header may be all that is wanted
                    return safe_open(path, framework="pt")
            with safe_open(path, framework="np"):
                return None
        except SafetensorError as error:
            if "not fully covered" not in str(error):
                raise _invalid(path, error) from error
        except (ValueError, OSError) as error:
            raise _invalid(path, error) from error
        size, expected = path.stat().st_size, _announced(stream, self.header)
        if size < expected:
            raise _truncated(path, size, f"its header announces {expected:,} bytes")
        raise Damaged(
            f"{path.name} has {size:,} bytes, but its header announces only {expected:,}. Download it again."
        )


def _checked_header(path: Path, stream: BinaryIO) -> dict[str, Any]:
    size = path.stat().st_size
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if length > size - 8:
        raise _truncated(path, size, "even its header is incomplete")
    if length > HEADER_BYTES:
        raise Damaged(f"{path.name} has a header of {length:,} bytes; at most {HEADER_BYTES:,} are read.")
    try:
        return parse_json(stream.read(length), HEADER_BYTES)
    except ValueError as error:
        raise _invalid(path, error) from error


def _announced(stream: BinaryIO, header: dict[str, Any]) -> int:
    """Bytes of the whole file, by its header."""
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def _invalid(path: Path, error: Exception) -> Damaged:
    reason = printable(" ".join(str(error).split())).removeprefix("Error while deserializing header: ")[:200]
    return Damaged(f"{path.name} has a header that cannot be read ({reason}). Download it again.")


def _truncated(path: Path, size: int, why: str) -> Damaged:
    return Damaged(f"{path.name} is truncated: it has {size:,} bytes but {why}. Download it again.")
