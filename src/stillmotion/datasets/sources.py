"""Finds clips and their captions: a folder, a table (CSV), or JSONL. Opens no clip.

folder      name.txt, name.caption or name.json beside a file, else metadata.jsonl or .csv, else a name
CSV         videoid,name,page_dir (WebVid) or a file and a caption column; comma, semicolon or tab
JSONL       {"file": "a.mp4", "caption": "a dog"}; also Hugging Face's file_name and text

A caption may have alternatives (lines of a sidecar file, a list in JSONL): training draws one each time.
A list names files in its own folder (or in `clip_folder`) only, so that nobody else's list opens other files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from stillmotion.datasets.files import ANIMATED, VIDEOS, ending, files_in, is_inside, named_file
from stillmotion.datasets.files import STILLS as STILL_SUFFIXES
from stillmotion.datasets.report import Report
from stillmotion.datasets.text import caption_lines, cleaned, lines
from stillmotion.errors import DataError

CLIP_SUFFIXES = VIDEOS | ANIMATED
LISTS = {".csv", ".tsv", ".jsonl", ".ndjson"}
METADATA = ("metadata.jsonl", "metadata.csv")
FILE_FIELDS = (
    "file",
    "file_name",
    "filename",
    "file_path",
    "path",
    "image",
    "image_path",
    "video",
    "video_path",
)
CAPTION_FIELDS = ("caption", "captions", "text", "prompt", "tags")
SIDECARS = (".txt", ".caption", ".TXT", ".CAPTION", ".Txt", ".Caption")

__all__ = ["CLIP_SUFFIXES", "LISTS", "STILL_SUFFIXES", "Item", "files_in", "find_items", "same_captions"]


@dataclass(frozen=True)
class Item:
    """One clip on disk; `captions` are alternatives of which training draws one.

    `variant` tells apart several items made of the same file.
    """

    path: Path
    captions: tuple[str, ...]
    variant: str = ""


class NotCaptions(Exception):
    """A value that is no caption; the message is the reason, for the report."""


def _spoken(path: Path) -> str:
    return " ".join(cleaned(path.stem.replace("_", " ").replace("-", " ")).split())


def find_items(
    source: str | Path,
    report: Report,
    clip_folder: str | Path | None = None,
    suffixes: frozenset[str] = CLIP_SUFFIXES,
    default_caption: Callable[[Path], str] = _spoken,
) -> list[Item]:
    """The clips of a source, in an order that depends only on its content; files left out go to the report.

    Args:
        source: a folder, or a CSV or JSONL file.
        report: gets each file that is not used, with the reason.
        clip_folder: where the files named in a CSV or JSONL are; default: the folder of that file.
        suffixes: what is taken from a folder.
        default_caption: of a file in a folder that has no caption; default: its name.
    Raises DataError when the source itself cannot be used.
    """
    source = Path(source)
    folder = Path(clip_folder) if clip_folder is not None else source.parent
    kind = source.suffix.lower()
    if source.is_dir():
        items = list(_from_folder(source, suffixes, default_caption, report))
    elif not source.exists():
        raise DataError(
            f"{source} does not exist; give a folder of clips, a CSV (videoid,name,page_dir) or a JSONL file."
        )
    elif kind in LISTS:
        items = list((_from_csv if kind in {".csv", ".tsv"} else _from_jsonl)(source, folder, report))
    else:
        raise DataError(
            f"{source} is neither a folder nor a .csv or .jsonl file; give a folder of clips with captions "
            "in .txt files beside them, a CSV with the columns videoid,name,page_dir, or JSONL with file and "
            "caption."
        )
    if not items:
        raise DataError(
            f"{source} names no file that can be trained on; expected {', '.join(sorted(suffixes))}. "
            f"{report.sentence()}".strip()
        )
    return items


def same_captions(items: Iterable[Item]) -> str | None:
    """The caption, if all clips share a single one (nothing for the text to steer); else None."""
    captions = {caption for item in items for caption in item.captions}
    return captions.pop() if len(captions) == 1 else None


def _from_folder(
    folder: Path, suffixes: frozenset[str], default_caption: Callable[[Path], str], report: Report
) -> Iterator[Item]:
    paths = files_in(folder, suffixes, report)
    listed = dict(
        chain.from_iterable(_listed(place, report) for place in {folder, *(p.parent for p in paths)})
    )
    unread = []
    for path in paths:
        try:
            yield Item(path, sidecar(path) or listed.get(path) or (default_caption(path),))
        except NotCaptions as error:
            report.skip(path, str(error))
        except DataError as error:
            unread.append(error)
    if unread:
        more = f" (The same is true of {len(unread) - 1} more captions.)" if len(unread) > 1 else ""
        raise DataError(f"{unread[0]}{more}")


def _listed(folder: Path, report: Report) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """What metadata.jsonl or metadata.csv of a folder says of its files."""
    for name in METADATA:
        source = folder / name
        if source.is_file():
            try:
                read = _from_csv if name.endswith(".csv") else _from_jsonl
                yield from [(item.path, item.captions) for item in read(source, folder, report)]
            except DataError as error:
                report.skip(source, str(error).replace(str(source), "the file").rstrip("."))


def sidecar(path: Path) -> tuple[str, ...]:
    """The captions beside a clip or image: lines of name.txt or name.caption, or those in name.json.

    Raises DataError if that file is no text, NotCaptions if the JSON has another kind of caption.
    """
    names = [f"{path.stem}{suffix}" for suffix in SIDECARS]
    names += [f"{path.name}.txt", f"{path.name}.caption", f"{path.stem}.json"]
    for name in names:
        text = named_file(path.parent, name)
        if text is None:
            continue
        captions = _json_captions(text) if text.suffix == ".json" else tuple(caption_lines(text))
        if captions:
            return captions
    return ()


def _json_captions(path: Path) -> tuple[str, ...]:
    try:
        found = json.loads("\n".join(lines(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON.") from error
    value = _first(found, CAPTION_FIELDS) if isinstance(found, dict) else None
    return () if value is None else _captions(value)


def _captions(value: Any) -> tuple[str, ...]:
    """Captions as a row gives them: a text or a list of texts. Raises NotCaptions."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise NotCaptions("its list of captions is empty")
    values = [one for one in values if one is not None and one == one]  # NaN is how pandas writes null
    if not values:
        raise NotCaptions("its caption is null")
    if not all(isinstance(one, str) for one in values):
        raise NotCaptions("its caption is neither a text nor a list of texts")
    return tuple(map(cleaned, values))


def _first(row: Mapping[str, Any], fields: Iterable[str]) -> Any:
    """The value of the first of these fields that a row has."""
    return row[next(field for field in fields if field in row)] if any(f in row for f in fields) else None


def _from_csv(source: Path, folder: Path, report: Report) -> Iterator[Item]:
    text = (f"{line}\n" for line in lines(source))
    header = next((line for line in text if line.strip() and not line.lower().startswith("sep=")), "")
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(chain((header,), text), delimiter=delimiter, skipinitialspace=True)
    try:
        columns = [name.strip() for name in rows.fieldnames or ()]
    except csv.Error as error:
        raise DataError(f"{source} has no line of columns that can be read ({error}).") from error
    rows.fieldnames = columns
    webvid = {"videoid", "name"} <= set(columns)
    if not webvid and not (set(FILE_FIELDS) & set(columns) and set(CAPTION_FIELDS) & set(columns)):
        missing = " and ".join(sorted({"videoid", "name"} - set(columns)))
        raise DataError(
            f"{source} has the columns {', '.join(columns) or '(none)'}, but {missing} must be there "
            "(WebVid: videoid,name,page_dir), or a file and a caption (file_name,text)."
        )
    try:
        for row in rows:
            if webvid:
                file, page = (row["videoid"] or "").strip(), (row.get("page_dir") or "").strip()
                caption, path = row["name"] or "", _video(folder, file, page)
            else:
                file, caption = (_first(row, FILE_FIELDS) or "").strip(), _first(row, CAPTION_FIELDS) or ""
                path = named_file(folder, file)
                page = ""
            if path is not None:
                yield Item(path, (cleaned(caption),))
            else:
                report.skip(folder / file, _why(folder, Path(page, file).as_posix(), "CSV"))
    except csv.Error as error:
        raise DataError(f"{source}, line {rows.line_num}: {error}.") from error


def _why(folder: Path, file: str, kind: str) -> str:
    if is_inside(folder, file):
        return f"there is no such file (listed in the {kind})"
    return (
        f"it lies outside the folder of the {kind}, which names only files there: put the list into a folder "
        "above its files (for videos also: --video-folder)"
    )


def _video(folder: Path, video: str, page: str) -> Path | None:
    """`page_dir/videoid.mp4` as WebVid has it, or `videoid.mp4` in one flat folder (the original trainer)."""
    for base in dict.fromkeys((f"{page}/", "") if page else ("",)):
        for suffix in ("", ".mp4", *sorted(CLIP_SUFFIXES - {".mp4"})):
            name = f"{base}{video}{suffix}"
            path = named_file(folder, name)
            if path is not None and ending(path) in CLIP_SUFFIXES:
                return path
    return None


def _from_jsonl(source: Path, folder: Path, report: Report) -> Iterator[Item]:
    for number, line in enumerate(lines(source), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        file = _first(row, FILE_FIELDS) if isinstance(row, dict) else None
        if not isinstance(file, str) or not any(field in row for field in CAPTION_FIELDS):
            raise DataError(
                f'{source}, line {number}: expected an object like {{"file": "a.mp4", "caption": "a dog"}}, '
                f"found {line[:60]!r}."
            )
        path = named_file(folder, file)
        if path is None:
            report.skip(folder / file, _why(folder, file, "JSONL"))
            continue
        try:
            yield Item(path, _captions(_first(row, CAPTION_FIELDS)))
        except NotCaptions as error:
            report.skip(path, str(error))
