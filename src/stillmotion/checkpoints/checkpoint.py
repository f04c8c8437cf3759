"""A file or folder of weights, opened once: what it is, its header and its tensors travel together.

    found = open_checkpoint("style.safetensors")
    found.info.kind, found.header.metadata, found.state()

Whatever takes a file of weights takes one of these too (`Lora.load`, `MotionModel.load`, `load_base`, ...).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stillmotion.checkpoints.file_kinds import FileInfo
from stillmotion.checkpoints.files import Header, Weights
from stillmotion.checkpoints.hub import locate
from stillmotion.checkpoints.kind_rules import info_of, info_of_pipeline
from stillmotion.checkpoints.lora.adapter_config import adapter_folder

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint:
    """What is at a place: `path`, what the user called it (`source`), and what is read when it is asked for.

    Raises `WeightsError` or one of its kin, at the first use of the header, the kind or the tensors.
    """

    def __init__(self, path: Path, source: str | Path) -> None:
        self.path, self.source = path, str(source)

    @property
    def name(self) -> str:
        """The last part of what the user called it."""
        return Path(self.source).name

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a diffusers folder of several parts, which has no tensors of its own."""
        return (self.path / "model_index.json").is_file()

    @cached_property
    def info(self) -> FileInfo:
        """What it is, by names and shapes; kind "unknown" if no rule fits."""
        if self.is_pipeline:
            return info_of_pipeline(self.path)
        return info_of(self.header, call_name(self.path))

    @property
    def header(self) -> Header:
        """Names and shapes of its tensors, and what the file says of itself."""
        return self._weights.header

    def state(self) -> dict[str, Tensor]:
        """Its tensors by their unwrapped names, memory-mapped where the format can be."""
        return self._weights.state()

    @cached_property
    def _weights(self) -> Weights:
        return Weights(self.path)


Source = str | Path | Checkpoint
"""A path, a bundled name or a name on the hub, or what has been opened already."""


def open_checkpoint(source: Source) -> Checkpoint:
    """What `source` means: a path, a bundled name, "owner/model[/file]" on the hub, or what is open already.

    A folder of one peft adapter below it means that adapter. Raises `WeightsError` if there is no such place.
    """
    if isinstance(source, Checkpoint):
        return source
    return Checkpoint(adapter_folder(locate(source)), source)


def call_name(path: Path) -> str:
    """What a path says of its content: file and folder, and the model's name if it is in the hub's cache."""
    path = path.absolute()
    cached = next((part for part in path.parts if part.startswith("models--")), "")
    return "/".join(filter(None, (cached, path.parent.name, path.name)))
