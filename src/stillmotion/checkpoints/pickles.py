"""Torch pickles, read so that no code of the file runs: what is in them, and what they wanted to do.

A pickle is a program. `survey` walks through it without running it: which classes it names, and whether it
builds more than a file of weights needs. Then it is read with `weights_only=True` and nothing else; classes
that trainers leave beside the weights get inert stand-ins and are never imported.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import struct
import threading
import warnings
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from stillmotion.errors import Damaged, Unsafe, WeightsError
from stillmotion.foreign import printable

LEFTOVERS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf|antlr4|numpy|transformers"
    r"|diffusers|accelerate|deepspeed|peft|wandb|easydict|addict|munch|yacs|ml_collections|argparse|enum"
    r"|datetime|typing|ldm|sgm|animatediff|modules|networks|library)(\.\w+)+"
    r"|builtins\.(bool|bytes|dict|float|int|list|object|range|slice|str|tuple|type)|copyreg\._reconstructor"
    r"|collections\.(defaultdict|deque)|pathlib\.\w+Path|torch\.torch_version\.TorchVersion"
    r"|torch\.(optim|distributed|amp|cuda\.amp)(\.\w+)+"
)
"""Classes that trainers leave beside the weights (callbacks, configs, losses as numpy numbers, paths)."""

DICTS = re.compile(r"\.(defaultdict|EasyDict|AttrDict|Dict|FrozenDict|ConfigDict|Munch|DefaultMunch)$")
"""Those of them that are dicts, filled item by item."""

PARAMETERS = "torch.nn.modules.container.ParameterDict"
"""What the first textual inversions keep their vectors in: read as a plain dict."""

HARMLESS = ("torch._utils.", "torch.storage.", "torch._tensor.", "torch.serialization.")
HARMLESS_NAMES = {
    PARAMETERS,
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.nn.parameter.Parameter",
    "_codecs.encode",
}

PROGRAM_BYTES = 8 * 2**20
"""Of the pickle without its tensors: enough for 30,000 tensors."""
TUPLE_SIZE = 10_000
"""Values of a tuple, with all inside it: hashing larger ones takes for ever, or the stack."""
MOST_OPCODES = 1_000_000
"""Steps of all pickles of a file: 40 are those of a tensor, and the largest checkpoints have 7,000."""
DIRECTORY_BYTES = 16 * 2**20
"""Of the list of files in a zip archive."""
INFLATION = 20
"""How many times its size on the disk a compressed archive may become."""

_LZMA = getattr(zipfile, "lzma", None)  # some Pythons are built without it
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    *([_LZMA.LZMAError] if _LZMA else []),
)
"""What torch's and Python's readers raise on a damaged file, wherever in the program the damage is."""


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


class PlainDict:
    """Takes the place of a kind of dict: what is made of it is a plain ordered one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


@dataclass
class Survey:
    """What a pickle names and builds, told without running it."""

    leftovers: set[str] = field(default_factory=set)
    """classes of trainers, for which stand-ins are put"""
    strangers: list[str] = field(default_factory=list)
    """all other classes and functions: the file is not read"""
    protocol: int = 0
    steps: int = 0


class TorchPickle:
    """What `torch.save` put into a file: surveyed when it is opened, read by `load`.

    Raises `Unsafe` if a pickle wants more than tensors and plain containers, `Damaged` if it is broken.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        stream.seek(0)
        self._zipped, self._stored = stream.read(2) == b"PK", True
        self._survey = Survey()
        with self._broken_is_damaged():
            program = self._program(stream)
            _survey(program, 1 if self._zipped else 5, self._survey, path)
        if self._survey.strangers:
            raise _unsafe(path, self._survey.strangers)
        # torch maps files by name only, and takes the name .safetensors for the format
        self._mapped = self._zipped and self._stored and path.suffix != ".safetensors"

    @property
    def can_skip_tensors(self) -> bool:
        """Whether `load` with `shapes_only` gives meta tensors; in files before torch 1.6 they are read."""
        return self._zipped

    def load(self, *, shapes_only: bool = False) -> Any:
        """The content of the file, its tensors mapped where they lie in it uncompressed."""
        import torch

        place = "meta" if shapes_only and self.can_skip_tensors else "cpu"
        with self._broken_is_damaged(), contextlib.ExitStack() as stack:
            stack.enter_context(_ALONE)
            stack.enter_context(_stand_ins(self._survey.leftovers))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            source = self.path if self._mapped else stack.enter_context(self.path.open("rb"))
            return torch.load(source, map_location=place, weights_only=True, mmap=self._mapped)

    def _program(self, stream: BinaryIO) -> bytes:
        """The pickle of the file without its tensors; notes whether the archive is compressed."""
        if self._zipped:
            program, self._stored = _archived_program(self.path, stream)
            return program
        stream.seek(0)
        return stream.read(PROGRAM_BYTES + 1)

    @contextlib.contextmanager
    def _broken_is_damaged(self) -> Iterator[None]:
        name = self.path.name
        try:
            yield
        except pickle.UnpicklingError as error:
            if self._survey.protocol > 2:
                raise WeightsError(
                    f"{name} was pickled with protocol {self._survey.protocol}; torch reads protocol 2 "
                    "alone without running code. Save it again with torch.save, or as .safetensors."
                ) from error
            raise _damaged(self.path) from error
        except BROKEN as error:
            if self._zipped and not _has_end(self.path):
                raise Damaged(
                    f"{name} is truncated: it has {self.path.stat().st_size:,} bytes, but the end of its "
                    "archive is missing. Download it again."
                ) from error
            raise _damaged(self.path) from error


def load_torch(path: Path, *, shapes_only: bool = False) -> Any:
    """The content of a torch file, once `TorchPickle` has surveyed it; errors as there."""
    with path.open("rb") as stream:
        found = TorchPickle(path, stream)
    return found.load(shapes_only=shapes_only)


def _survey(program: bytes, pickles: int, found: Survey, path: Path) -> None:
    """Notes what the pickles at the beginning of `program` name (the format before torch 1.6 has five).

    Raises `Damaged` for programs beyond the bounds.
    """
    source = BytesIO(program)
    for _ in range(pickles):
        try:
            _walk(source, found, path)
        except (ValueError, UnicodeDecodeError):
            if source.tell() > PROGRAM_BYTES:
                raise _too_large(path, "its pickle is longer than any of weights") from None
            return  # torch's reader fails at the same place, or what follows is the tensors


def _archived_program(path: Path, stream: BinaryIO) -> tuple[bytes, bool]:
    """The pickle in a zip archive, and whether no file in the archive is compressed."""
    size = path.stat().st_size
    end = _end(stream, size)
    for mark, start, length in ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):
        place = end.rfind(mark)
        announced = int.from_bytes(end[place + start : place + start + length], "little")
        if place >= 0 and DIRECTORY_BYTES < announced != 0xFFFFFFFF:
            raise _too_large(path, "its archive lists more files than any of weights")
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > INFLATION * size:
            raise _too_large(path, f"unpacked it is more than {INFLATION} times its size")
        programs = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if not programs:
            raise WeightsError(
                f"{path.name} is a zip archive without a torch checkpoint in it. If the weights are inside, "
                "unpack it and name the file of weights."
            )
        if max(entry.file_size for entry in programs) > PROGRAM_BYTES:
            raise _too_large(path, "its pickle is longer than any of weights")
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        return b"".join(archive.read(entry) for entry in programs[:1]), stored


def _end(stream: BinaryIO, size: int) -> bytes:
    """The last bytes of a file, where a zip archive has its list of files."""
    stream.seek(max(0, size - 70_000))
    return stream.read()


def _has_end(path: Path) -> bool:
    with path.open("rb") as stream:
        return b"PK\5\6" in _end(stream, path.stat().st_size)


def _walk(program: BytesIO, found: Survey, path: Path) -> None:
    """Goes through one pickle, opcode by opcode, with sizes of tuples and strings in place of values."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(program):
        name, number = opcode.name, argument if isinstance(argument, int) else 0
        found.steps += 1
        if found.steps > MOST_OPCODES:
            raise _too_large(path, "its pickle is longer than any of weights")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else number] = stack[-1] if stack else 1
            continue
        taken = _take(stack, opcode)
        value: Any = 1
        if name.startswith("TUPLE"):
            value = 1 + sum(item if isinstance(item, int) else 1 for item in taken)
            if value > TUPLE_SIZE:
                raise _too_large(path, f"it holds a tuple of more than {TUPLE_SIZE:,} values")
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            value = memo.get(number, 1)
        elif name == "PROTO":
            found.protocol = max(found.protocol, number)
        elif name in ("GLOBAL", "INST"):
            module, _, last = str(argument).partition(" ")
            _note(module, last, found)
        elif name == "STACK_GLOBAL":
            last, module = (*map(str, taken), "", "")[:2]
            _note(module, last, found)
        elif isinstance(argument, str):
            value = argument
        stack.extend([value] * sum(thing is not pickletools.markobject for thing in opcode.stack_after))
        if name == "MARK":
            stack.append(None)


def _take(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[Any]:
    """What an opcode takes off the stack, the last first; None stands for a mark."""
    taken = []
    if pickletools.markobject in opcode.stack_before:
        while stack and (item := stack.pop()) is not None:
            taken.append(item)
        before = opcode.stack_before.index(pickletools.markobject)
    else:
        before = len(opcode.stack_before)
    return taken + [stack.pop() for _ in range(min(before, len(stack)))]


def _note(module: str, name: str, found: Survey) -> None:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    name = f"{module}.{name}"
    tensor = name.startswith("torch.") and name.count(".") == 1
    if name in HARMLESS_NAMES or name.startswith(HARMLESS) or tensor:
        return
    if LEFTOVERS.fullmatch(name):
        found.leftovers.add(name)
    elif name not in found.strangers:
        found.strangers.append(name)


def _unsafe(path: Path, names: list[str]) -> Unsafe:
    words = printable(", ".join(name[:100] for name in names[:3]))
    return Unsafe(
        f"{path.name} wants to run code when it is opened ({words}), so it was not loaded. "
        "Look for a .safetensors of the same model, or ask its author for one."
    )


def _too_large(path: Path, why: str) -> Damaged:
    return Damaged(f"{path.name} is not an honest torch checkpoint ({why}), so it was not loaded.")


def _damaged(path: Path) -> Damaged:
    return Damaged(f"{path.name} is truncated or is not a torch checkpoint. Download it again.")


_ALONE = threading.Lock()
"""torch keeps the classes it lets through, and Python its warning filters, for the whole process."""


@contextlib.contextmanager
def _stand_ins(names: set[str]) -> Iterator[None]:
    """Lets the reader meet these names as empty classes and ParameterDict as a dict, for one load."""
    import torch

    classes: list[Any] = []
    kinds = {name: PlainDict if DICTS.search(name) else StandIn for name in sorted(names)}
    for name, kind in {**kinds, PARAMETERS: Parameters}.items():
        module, _, last = name.rpartition(".")
        classes.append(type(last, (kind,), {"__module__": module, "__qualname__": last}))
    with torch.serialization.safe_globals(classes):
        yield
