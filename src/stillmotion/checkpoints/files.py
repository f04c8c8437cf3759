"""Files and folders of weights: their headers (names and shapes, nothing read) and their tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stillmotion import foreign
from stillmotion.checkpoints.formats import Safetensors, open_regular, sniff
from stillmotion.checkpoints.unwrap import Unwrapped, unwrap
from stillmotion.errors import Damaged, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
STEMS = (
    "diffusion_pytorch_model",
    "pytorch_lora_weights",
    "adapter_model",
    "model",
    "pytorch_model",
    "learned_embeds",
)
"""Names that diffusers and transformers give to the weights in a folder, in order of preference."""

_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
}
"""Names of dtypes in safetensors and in torch."""


LARGER = 20
"""How many times the size of its file the tensors of a checkpoint may have (views that share memory)."""


class Header(dict[str, Shape]):
    """Names and shapes of the tensors of a file, with what else the file says about itself.

    `metadata` are the strings of a safetensors header, `extras` what a pickle held beside them, `config` the
    config.json of the folder, `unwrapped` the wrappers and prefixes taken off, `name` the file's name.
    """

    def __init__(self, shapes: Mapping[str, Shape], *, name: str = "", **about: Any) -> None:
        super().__init__(shapes)
        self.name = name
        self.metadata: dict[str, str] = about.get("metadata", {})
        self.extras: dict[str, Any] = about.get("extras", {})
        self.config: dict[str, Any] = about.get("config", {})
        self.unwrapped: tuple[str, ...] = about.get("unwrapped", ())
        self.dtypes: frozenset[str] = about.get("dtypes", frozenset())

    @property
    def parameters(self) -> int:
        """Parameters of all tensors together."""
        return sum(math.prod(shape) for shape in self.values())


class Weights:
    """The file, or the shards in a folder, that hold the tensors of one model: each is opened once.

    Raises `WeightsError` (no such file), `Damaged` (truncated, a web page) or `Unsafe` (code in a pickle), at
    the first use of the header or the tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def header(self) -> Header:
        """Names and shapes of all tensors, unwrapped; no tensor is read if it need not be."""
        parts = [file.header for file in self._files]
        first = parts[0]
        return Header(
            {name: shape for part in parts for name, shape in part.items()},
            name=self.path.name,
            metadata=first.metadata,
            extras=first.extras,
            config=read_config(self.path),
            unwrapped=first.unwrapped,
            dtypes=frozenset().union(*(part.dtypes for part in parts)),
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors by their unwrapped names, memory-mapped where the format can be."""
        return {name: tensor for file in self._files for name, tensor in file.state().items()}

    @cached_property
    def _files(self) -> list[_SafetensorsFile | _TorchFile]:
        return [_open(file) for file in weight_files(self.path)]


def read_header(path: str | Path) -> Header:
    """Names and shapes of the tensors in a file or folder, unwrapped; errors as in `Weights`."""
    return Weights(Path(path)).header


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file or folder by their unwrapped names; errors as in `Weights`."""
    return Weights(Path(path)).state()


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty for files and for folders without one."""
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}


def read_json(file: Path) -> dict[str, Any]:
    """The settings in a JSON file; `Damaged` if it is missing, broken or not named settings."""
    try:
        settings = foreign.read_json(file)
    except (OSError, ValueError) as error:
        raise Damaged(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(settings, dict):
        raise Damaged(f"{file} holds a {type(settings).__name__}, not the settings of a model.")
    return settings


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the files in a folder that together hold one model (several when it is sharded)."""
    if not path.is_dir():
        return [path]
    for stem in STEMS:
        for middle in ("", ".fp16", ".bf16"):
            for suffix in (".safetensors", ".bin"):
                if (file := path / f"{stem}{middle}{suffix}").is_file():
                    return [file]
                if (index := path / f"{stem}{suffix}.index{middle}.json").is_file():
                    return _shards(index)
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(found) == 1:
        return found
    if not found:
        raise WeightsError(f"The folder {path} has no weights in it (looked for {', '.join(SUFFIXES)}).")
    names = ", ".join(file.name for file in found[:6])
    raise WeightsError(
        f"The folder {path} has {len(found)} files of weights ({names}): name the one you want."
    )


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(name, str) for name in places.values())
    ):
        raise Damaged(f"{index} has no weight_map that says which tensor lies in which file.")
    names = sorted(set(places.values()))
    outside = next((name for name in names if Path(name).name != name or "\\" in name), None)
    if outside is not None:
        raise Damaged(f"{index} names the file {outside!r}; the files of a model must lie beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise Damaged(
            f"{index.name} announces {len(names)} files, but {missing[0]} is missing. Download it again."
        )
    return [index.parent / name for name in names]


def _open(file: Path) -> _SafetensorsFile | _TorchFile:
    with open_regular(file) as stream:
        if sniff(file, stream) == "safetensors":
            return _SafetensorsFile(file, stream)
        return _TorchFile(file, stream)


class _SafetensorsFile:
    """A safetensors file: its header is checked when it is opened, its tensors are mapped when asked for."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._opened = Safetensors(file, stream)
        entries = dict(self._opened.header)
        metadata = entries.pop("__metadata__", None) or {}
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        found = _unwrap(shapes, lambda value: isinstance(value, tuple), file)
        dtypes = frozenset(_DTYPES.get(entry["dtype"], entry["dtype"]) for entry in entries.values())
        self.file = file
        self.header = Header(
            found.tensors, name=file.name, metadata=metadata, unwrapped=found.steps, dtypes=dtypes
        )

    def state(self) -> dict[str, Tensor]:
        import torch

        return _unwrap(self._opened.tensors(), torch.is_tensor, self.file).tensors


class _TorchFile:
    """A torch file: its program is read when it is opened, and its tensors if they cannot be left out."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        from stillmotion.checkpoints.pickles import TorchPickle

        self.file, self._pickle = file, TorchPickle(file, stream)
        found = self._named(shapes_only=True)
        self._tensors = None if self._pickle.can_skip_tensors else found.tensors
        self.header = Header(
            {name: tuple(tensor.shape) for name, tensor in found.tensors.items()},
            name=file.name,
            extras=found.extras,
            unwrapped=found.steps,
            dtypes=frozenset(str(tensor.dtype).removeprefix("torch.") for tensor in found.tensors.values()),
        )

    def state(self) -> dict[str, Tensor]:
        return dict(self._tensors or self._named(shapes_only=False).tensors)

    def _named(self, *, shapes_only: bool) -> Unwrapped[Tensor]:
        """The tensors in the file; `Damaged` for those that are larger than the file they lie in."""
        import torch

        file = self.file
        tree = self._pickle.load(shapes_only=shapes_only)
        if not isinstance(tree, Mapping):
            raise Damaged(f"{file.name} holds a {type(tree).__name__}, not named tensors.")
        found = _unwrap(tree, torch.is_tensor, file)
        for name, tensor in found.tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized or (tensor.is_meta and not shapes_only):
                raise Damaged(
                    f"{file.name}: {name} is a sparse or quantised tensor, or none at all; "
                    "plain ones are read."
                )
        announced = sum(tensor.numel() * tensor.element_size() for tensor in found.tensors.values())
        if announced > LARGER * file.stat().st_size + 2**20:
            raise Damaged(
                f"{file.name} announces tensors of {announced:,} bytes, but has {file.stat().st_size:,}."
            )
        return found


def _unwrap(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool], file: Path) -> Unwrapped[Any]:
    try:
        return unwrap(tree, is_leaf)
    except Damaged as error:
        raise Damaged(f"{file.name} cannot be used. {error}") from error
