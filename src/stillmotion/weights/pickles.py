"""Torch pickles, read so that no code of the file runs: what is in them, and what they wanted to do.

A pickle is a program. It is read with `weights_only=True` and nothing else; a few class names that trainers
of the time left in honest checkpoints get inert stand-ins instead of being imported. Knows no names of keys.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from stillmotion.errors import Damaged, Unsafe, WeightsError

INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
"""Leftovers of trainers beside the weights (callbacks, losses as numpy numbers): never needed or imported."""

PARAMETERS = "torch.nn.modules.container.ParameterDict"
"""What the first textual inversions keep their vectors in: read as a plain dict."""

HARMLESS = ("torch._utils.", "torch.storage.", "torch._tensor.", "torch.serialization.")
HARMLESS_NAMES = {PARAMETERS, "collections.OrderedDict", "_codecs.encode", "torch.Size", "torch.device"}

BROKEN = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch's reader raises on a damaged file, wherever in the program of the pickle the damage is."""


class StandIn:
    """Takes the place of a leftover object: accepts everything, keeps nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Parameters(dict[str, Any]):
    """Takes the place of a ParameterDict: its tensors by name, nothing of the module around them."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and isinstance(state.get("_parameters"), dict):
            self.update(state["_parameters"])


def load_torch(path: Path, *, shapes_only: bool = False) -> Any:
    """What `torch.save` put into a file; with `shapes_only` as meta tensors, not read from the disk.

    (The format before torch 1.6 cannot be skipped over: its tensors are read in any case.)
    Raises `Unsafe` if a pickle wants more than tensors and plain containers, `Damaged` if it is broken.
    """
    import torch

    zipped = zipfile.is_zipfile(path)
    if not zipped and _begins_as_zip(path):
        raise Damaged(
            f"{path.name} is truncated: it has {path.stat().st_size:,} bytes, but the end of its archive is "
            "missing. Download it again."
        )
    place = "meta" if shapes_only and zipped else "cpu"
    try:
        with _ALONE, _stand_ins(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location=place, weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refusal(path) from error
    except BROKEN as error:
        raise _damaged(path) from error


def strangers(path: Path) -> list[str]:
    """Names in a pickle that are neither tensors nor plain containers; the program is listed, not run."""
    found = []
    with path.open("rb") as file:
        for name in _globals(_program(file)):
            plain = name in HARMLESS_NAMES or name in INERT or name.startswith(HARMLESS)
            storage = name.startswith("torch.") and name.count(".") == 1
            if not plain and not storage and name not in found:
                found.append(name)
    return found


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _program(file: BinaryIO) -> BinaryIO:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return file
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return BytesIO(archive.read(names[0])) if names else BytesIO()


def _globals(program: BinaryIO, pickles: int = 5) -> Iterator[str]:
    """Every global named by up to five pickles in a row (the old torch format has so many)."""
    with contextlib.suppress(ValueError, UnicodeDecodeError):
        for _ in range(pickles):
            strings: list[str] = []
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "GLOBAL":
                    yield argument.replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)


def _refusal(path: Path) -> WeightsError:
    names = strangers(path)
    if not names:
        return _damaged(path)
    return Unsafe(
        f"{path.name} wants to run code when it is opened ({', '.join(names[:3])}), so it was not loaded. "
        "Look for a .safetensors of the same model, or ask its author for one."
    )


def _damaged(path: Path) -> Damaged:
    return Damaged(f"{path.name} is truncated or is not a torch checkpoint. Download it again.")


_ALONE = threading.Lock()
"""torch keeps the classes it lets through, and Python its warning filters, for the whole process."""


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Lets the reader meet `INERT` as empty classes and ParameterDict as a dict, for the time of one load."""
    import torch

    classes = []
    for name, kind in {**dict.fromkeys(INERT, StandIn), PARAMETERS: Parameters}.items():
        module, _, last = name.rpartition(".")
        classes.append(type(last, (kind,), {"__module__": module, "__qualname__": last}))
    with torch.serialization.safe_globals(classes):
        yield
