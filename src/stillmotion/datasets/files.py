"""The media files of a folder, and the files that a list or another file's name points at. Opens none.

What operating systems, NAS boxes and archives leave among a user's files is no data: hidden files,
thumbnails, recycle bins. What looks like a photo or a video and is not taken is reported.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePath

from stillmotion.datasets.report import Report

SAME_FORMAT = {
    **dict.fromkeys((".jpeg", ".jfif", ".jpe", ".pjpeg", ".mpo"), ".jpg"),
    **dict.fromkeys((".j2k", ".jpx", ".jpf", ".j2c"), ".jp2"),
    **dict.fromkeys((".heif", ".hif"), ".heic"),
    **dict.fromkeys((".avifs",), ".avif"),
    **dict.fromkeys((".tiff",), ".tif"),
    **dict.fromkeys((".dib",), ".bmp"),
    **dict.fromkeys((".mpeg", ".mpe", ".m2v", ".m1v", ".vob", ".mod"), ".mpg"),
    **dict.fromkeys((".mts", ".m2ts", ".m2t"), ".ts"),
    **dict.fromkeys((".3g2", ".3gpp"), ".3gp"),
    **dict.fromkeys((".qt",), ".mov"),
    **dict.fromkeys((".asf",), ".wmv"),
    **dict.fromkeys((".f4v",), ".flv"),
    **dict.fromkeys((".ogg", ".ogm"), ".ogv"),
}
"""other endings of the same kind of file"""

STILLS = frozenset({".png", ".jpg", ".webp", ".bmp", ".tif", ".avif", ".heic", ".jp2"})
VIDEOS = frozenset(
    {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".ts", ".mpg", ".flv", ".wmv", ".3gp", ".ogv"}
)
ANIMATED = frozenset({".gif", ".webp", ".apng", ".png", ".avif"})
UNREAD = frozenset(
    {".jxl", ".psd", ".psb", ".svg", ".eps", ".ai", ".tga", ".exr", ".hdr", ".ico", ".xcf"}
) | {
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".kra"),
    *(".rm", ".rmvb", ".mxf", ".y4m", ".swf", ".insv", ".braw", ".r3d", ".crdownload", ".part"),
}
"""photos, drawings, videos and unfinished downloads that nobody here reads"""

SYSTEM = frozenset(
    {"@eadir", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"}
    | {"system volume information", "__macosx", "lost+found", "thumbs.db", "desktop.ini"}
)
"""names, in small letters, that NAS boxes, Windows and macOS give to their own"""


def ending(path: PurePath) -> str:
    """The ending of a file's name in small letters, the same for all endings of one format."""
    suffix = path.suffix.lower()
    return SAME_FORMAT.get(suffix, suffix)


def files_in(folder: Path, suffixes: frozenset[str], report: Report | None = None) -> list[Path]:
    """The files of these kinds, in subfolders and linked folders too, in the order of their names.

    Media that are not taken go to the report, each with its reason: hidden, of another kind, a broken link.
    """
    report = report if report is not None else Report()
    kinds = frozenset(SAME_FORMAT.get(suffix, suffix) for suffix in suffixes)
    found = []
    for path in _walked(folder, report):
        if ending(path) not in kinds | STILLS | VIDEOS | ANIMATED | UNREAD:
            continue
        if path.name.startswith("."):
            report.skip(path, "it is a hidden file")
        elif ending(path) not in kinds:
            report.skip(path, f"files that end in {path.suffix.lower()} are not read here")
        elif path.is_file():
            found.append(path)
        elif path.is_symlink():
            report.skip(path, "it is a link to nothing")
        else:
            report.skip(path, "it is no regular file")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _walked(folder: Path, report: Report) -> Iterator[Path]:
    """All files below a folder, following links; a folder that can be reached twice is read once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            report.skip(parent, "it is a link to a folder that is read already")
            folders.clear()
            continue
        seen.add(real)
        for name in [name for name in folders if name.startswith(".") or name.lower() in SYSTEM]:
            folders.remove(name)
            if not name.startswith("."):
                report.skip(Path(parent, name), "it belongs to the system (thumbnails, deleted files)")
        folders.sort(
            key=lambda name: (Path(parent, name).is_symlink(), name)
        )  # the folder before links to it
        yield from (Path(parent, name) for name in names if name.lower() not in SYSTEM)


def named_file(folder: Path, name: str) -> Path | None:
    """The file that a list calls `name`, or None if there is none or it lies outside `folder`.

    Letters with accents may be composed or decomposed, folders be divided by / or \\.
    """
    for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
        if not is_inside(folder, spelled):
            continue
        path = folder
        for part in PurePath(spelled).parts:
            path = next((place for place in _spellings(path, part) if _exists(place)), path / part)
        if _exists(path, file=True):
            return path
    return None


def is_inside(folder: Path, name: str) -> bool:
    """Whether a list's `name` stays in its folder: not ../x, and absolute only below the folder itself."""
    base = os.path.abspath(folder)
    try:
        return os.path.commonpath((base, os.path.abspath(os.path.join(base, name)))) == base
    except ValueError:  # another drive
        return False


def _spellings(folder: Path, name: str) -> list[Path]:
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return [folder / form for form in dict.fromkeys(forms)]


def _exists(path: Path, file: bool = False) -> bool:
    try:
        return path.is_file() if file else path.exists()
    except (OSError, ValueError):  # a name that no file can have: too long, a zero byte
        return False
