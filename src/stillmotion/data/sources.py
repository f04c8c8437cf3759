"""Finds clips and their captions: a folder, a WebVid-style CSV, or JSONL. Opens no clip.

A caption may have alternatives (lines of a sidecar file, a list in JSONL): training draws one each time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stillmotion.data.report import Report
from stillmotion.errors import DataError

CLIP_SUFFIXES = frozenset({".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".gif", ".webp", ".apng", ".png"})
STILL_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Item:
    """One clip on disk; `captions` are alternatives of which training draws one.

    `variant` tells apart several items made of the same file.
    """

    path: Path
    captions: tuple[str, ...]
    variant: str = ""


def find_items(
    source: str | Path,
    report: Report,
    clip_folder: str | Path | None = None,
    suffixes: frozenset[str] = CLIP_SUFFIXES,
) -> list[Item]:
    """The clips of a source, in an order that depends only on its content; missing files go to the report.

    `clip_folder` is where the files named in a CSV or JSONL are; default: the folder of that file. `suffixes`
    are what is taken from a folder.
    Raises DataError when the source itself cannot be used.
    """
    source = Path(source)
    folder = Path(clip_folder) if clip_folder is not None else source.parent
    if source.is_dir():
        items = list(_from_folder(source, suffixes))
    elif not source.exists():
        raise DataError(
            f"{source} does not exist; give a folder of clips, a CSV (videoid,name,page_dir) or a JSONL file."
        )
    elif source.suffix.lower() == ".csv":
        items = list(_from_csv(source, folder, report))
    elif source.suffix.lower() in {".jsonl", ".ndjson"}:
        items = list(_from_jsonl(source, folder, report))
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


def _from_folder(folder: Path, suffixes: frozenset[str]) -> Iterator[Item]:
    for path in files_in(folder, suffixes):
        yield Item(path, sidecar(path) or (_spoken(path.stem),))


def files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The files with these endings, in subfolders too, without hidden ones, in the order of their names."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    shown = (path for path in paths if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


def sidecar(path: Path) -> tuple[str, ...]:
    """The non-empty lines of `name.txt` beside a clip or picture."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        return ()
    return tuple(line.strip() for line in text.read_text("utf-8").splitlines() if line.strip())


def _spoken(stem: str) -> str:
    return " ".join(stem.replace("_", " ").replace("-", " ").split())


def _from_csv(source: Path, folder: Path, report: Report) -> Iterator[Item]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"videoid", "name"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(
                f"{source} has the columns {', '.join(rows.fieldnames or ()) or '(none)'}, "
                f"but {' and '.join(sorted(missing))} must be there (WebVid: videoid,name,page_dir)."
            )
        for row in rows:
            video, caption = (row["videoid"] or "").strip(), (row["name"] or "").strip()
            path = _video(folder, video, (row.get("page_dir") or "").strip())
            if path is None:
                report.skip(folder / video, "there is no such file (listed in the CSV)")
            else:
                yield Item(path, (caption,))


def _video(folder: Path, video: str, page: str) -> Path | None:
    """`page_dir/videoid.mp4` as WebVid has it, or `videoid.mp4` in one flat folder (the original trainer)."""
    for base in dict.fromkeys((folder / page, folder)):
        for suffix in ("", ".mp4", *sorted(CLIP_SUFFIXES - {".mp4"})):
            path = base / f"{video}{suffix}"
            if path.suffix.lower() in CLIP_SUFFIXES and path.is_file():
                return path
    return None


def _from_jsonl(source: Path, folder: Path, report: Report) -> Iterator[Item]:
    for number, line in enumerate(source.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, caption = row["file"], row["caption"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{source}, line {number}: expected an object like {{"file": "a.mp4", "caption": "a dog"}}, '
                f"found {line[:60]!r}."
            ) from None
        captions = (caption,) if isinstance(caption, str) else tuple(map(str, caption))
        path = folder / file
        if not path.is_file():
            report.skip(path, "there is no such file (listed in the JSONL)")
        elif not captions:
            report.skip(path, "its list of captions is empty")
        else:
            yield Item(path, captions)
