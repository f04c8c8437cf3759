"""Which files the names in a request stood for, so that a clip finds them again from another folder.

A clip and a file of latents carry one record for each local file or folder that its request names: where it
lies seen from the clip, its size, and a hash of its size and of samples of its content, which costs
nothing for gigabytes. A file that has moved is found beside the clip, also under another name; one that is
gone or has changed is named.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillmotion.errors import RequestError
from stillmotion.request.request import Request
from stillmotion.request.sections import REPEATED, ModelFields

MODELS = ("base", "motion", "vae", *REPEATED)
"""Fields of a request that name files or models on the hub."""

CONTENT = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json")
"""What counts of a model folder, and which files are looked at when a file has another name now."""

SAMPLES, SAMPLE_BYTES = 8, 2**16
MOST_FILES = 500
"""In one folder; a model folder has some twenty."""
MOST_RECORDS = 256
LONGEST_NAME = 4096


@dataclass(frozen=True)
class ModelFile:
    """One file or folder: what a request calls it, its absolute path, its bytes, its hash."""

    name: str
    path: str
    size: int
    hash: str

    @classmethod
    def of(cls, name: str) -> ModelFile | None:
        """The record of what lies there now; None where nothing does (a name on the hub, a bundled one)."""
        path = os.path.abspath(os.path.expanduser(name))
        size = _size(path)
        return None if size is None else cls(name, path, size, _hash(path, size))

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """For JSON in a file of this folder: the path is relative to it, where it can be."""
        try:
            path = Path(os.path.relpath(self.path, folder.absolute())).as_posix()
        except ValueError:  # another drive
            path = ""
        return {"name": self.name, "path": path, "size": self.size, "hash": self.hash}

    def is_at(self, path: str) -> bool:
        """Whether the same content lies there now."""
        return _size(path) == self.size and _hash(path, self.size) == self.hash


def records_of(names: Iterable[str]) -> tuple[ModelFile, ...]:
    """A record for each name that is a file or folder here."""
    found = (ModelFile.of(name) for name in dict.fromkeys(names))
    return tuple(record for record in found if record is not None)


def read_records(content: Any, folder: Path) -> tuple[ModelFile, ...]:
    """The records in a file of this folder; what no record of ours can be is left out."""
    if not isinstance(content, list):
        return ()
    return tuple(
        ModelFile(each["name"], os.path.join(folder, each["path"]), each["size"], each["hash"])
        for each in content[:MOST_RECORDS]
        if _is_record(each)
    )


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "path", "size", "hash"}:
        return False
    texts = [value["name"], value["path"], value["hash"]]
    if not all(isinstance(text, str) and len(text) <= LONGEST_NAME and "\0" not in text for text in texts):
        return False
    return isinstance(value["size"], int) and not isinstance(value["size"], bool) and value["size"] >= 0


def model_names(models: ModelFields) -> Iterator[tuple[str, str]]:
    """Field and name of every model of a request (or of its section `models`), in order."""
    for field in MODELS:
        value = getattr(models, field)
        for name in [value] if isinstance(value, str) else value or ():
            yield field, name


def found_again(request: Request, records: Sequence[ModelFile], folder: Path, carrier: str) -> Request:
    """The request with the names under which its files are found from here; nothing is opened but
    files of the very size in `folder`.

    Args:
        request: as the file `carrier` has it.
        records: those of the same file.
        folder: where that file lies.
        carrier: what to call it in errors.

    RequestError that names what is nowhere to be found.
    """
    by_name = {record.name: record for record in records}
    places: dict[str, str] = {}
    missing = []
    for field, name in model_names(request):
        if (record := by_name.get(name)) is not None:
            place = _place(record, folder)
            places[name] = name if place is None else place
            if place is None:
                missing.append(f"{name} ({record.size:,} bytes, `{field}=`)")
    if missing:
        raise RequestError(
            f"{carrier} was made with {' and '.join(missing)}, which is not found by this name, "
            f"nor where it lay seen from the clip, nor by its content in {folder.absolute()}. Put it there, "
            "or name it anew."
        )
    return renamed(request, places)


def renamed(request: Request, places: Mapping[str, str]) -> Request:
    """The request with other names for its models."""
    fields: dict[str, Any] = {}
    for field in MODELS:
        value = getattr(request, field)
        if isinstance(value, str) and places.get(value, value) != value:
            fields[field] = places[value]
        elif isinstance(value, Mapping) and any(places.get(name, name) != name for name in value):
            fields[field] = {places.get(name, name): weight for name, weight in value.items()}
    return request.replace(**fields) if fields else request


def verified(
    request: Request, found: Request, records: Sequence[ModelFile], folder: Path
) -> tuple[Request, list[str]]:
    """`found` with the right files where a file of its name and size is another, and what cannot be helped.

    Args:
        request: as the clip has it.
        found: what `found_again` made of it.
        records: those of the clip.
        folder: where the clip lies.

    The second is a sentence for each file whose content is another now.
    """
    by_name = {record.name: record for record in records}
    places, notes = {}, []
    for (_, name), (_, place) in zip(model_names(request), model_names(found), strict=True):
        record = by_name.get(name)
        if record is None or record.is_at(place):
            continue
        if (other := _by_content(record, folder)) is not None:
            places[place] = other
        else:
            notes.append(
                f"{place} has another content than when the clip was made ({record.size:,} bytes then): the "
                "clip will differ."
            )
    return renamed(found, places), notes


def _place(record: ModelFile, folder: Path) -> str | None:
    """Where it is: by its name, where it lay, beside the clip; first what has its size, then its content."""
    beside = os.path.join(folder, os.path.basename(os.path.normpath(record.name)))
    tried = [record.name, os.path.normpath(record.path), beside]
    known = [place for place in tried if place and _size(place) is not None]
    for place in known:
        if _size(place) == record.size:
            return place
    return _by_content(record, folder) or (known[0] if known else None)


def _by_content(record: ModelFile, folder: Path) -> str | None:
    """A file or folder of the same content in a folder, whatever it is called."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)[: MOST_FILES * 4]
    except OSError:
        return None
    for entry in entries:
        if (entry.is_dir() or entry.name.lower().endswith(CONTENT)) and record.is_at(entry.path):
            return entry.path
    return None


def _size(path: str) -> int | None:
    """Bytes of a regular file, or of what counts in a folder; None for anything else."""
    try:
        about = os.stat(os.path.expanduser(path))
        if stat.S_ISDIR(about.st_mode):
            return sum(os.stat(file).st_size for file in _inside(path))
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _inside(folder: str) -> list[str]:
    """The files of a folder that count, at most two levels down, sorted."""
    found = []
    for pattern in ("*", "*/*", "*/*/*"):
        for file in Path(folder).expanduser().glob(pattern):
            if file.suffix.lower() in CONTENT and file.is_file():
                found.append(str(file))
            if len(found) > MOST_FILES:
                return sorted(found[:MOST_FILES])
    return sorted(found)


def _hash(path: str, size: int) -> str:
    """Of the size and of samples from the whole length; of a folder, of the names and contents in it."""
    digest = hashlib.sha256(str(size).encode())
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        for file in _inside(path):
            digest.update(os.path.relpath(file, path).encode("utf-8", "surrogatepass") + b"\0")
            digest.update(_hash(file, os.path.getsize(file)).encode())
        return digest.hexdigest()
    with open(path, "rb") as opened:
        for number in range(SAMPLES):
            opened.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()
