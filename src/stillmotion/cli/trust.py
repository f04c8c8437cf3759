"""What a file from somebody else may open: the models it names, after a question or with --trust.

A clip or a file of latents names the models it was made with: paths and names on the hub. Whoever made the
file may have named anything, so `redo` and `decode` open at once only what comes with stillmotion and what
this user has opened before; the rest is shown first. Only files that are models by their name are opened.

Remembered are hashes of absolute paths and hub names, one a line, in the user's state folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from stillmotion.checkpoints.files import SUFFIXES
from stillmotion.checkpoints.hub import bundled_loras, bundled_names
from stillmotion.cli.hints import MEDIA
from stillmotion.errors import RequestError, StillmotionWarning, WrongKind
from stillmotion.foreign import printable
from stillmotion.request import Request
from stillmotion.request.conditions import kind_of
from stillmotion.request.model_files import ModelFile, found_again, model_names, verified

trust_option = click.option(
    "--trust", is_flag=True, help="Open the models that FILE names without asking; it may be a stranger's."
)


def opened_from(file: Path, request: Request, files: Sequence[ModelFile], trust: bool) -> Request:
    """The request that `file` carries with its models found again, once they may be opened.

    Args:
        file: the clip or latents.
        request: what it says, without what the user said himself.
        files: its records of the models' files.
        trust: whether the user has said that they may be opened.
    """
    found = found_again(request, files, file.parent, str(file))
    check_trust(file, found, trust)
    found, notes = verified(request, found, files, file.parent)
    for note in notes:
        warnings.warn(note, StillmotionWarning, stacklevel=2)
    return found


def check_trust(file: Path, request: Request, trust: bool) -> None:
    """Asks before anything is opened that only the file names; RequestError where nobody can be asked.

    `request` holds what the file says, without what the user said himself. WrongKind for names that cannot be
    models.
    """
    known = _opened()
    new = [(field, name) for field, name in named(request) if _mark(name) not in known]
    if new and not trust:
        listed = "".join(f"\n  {field:<12} {printable(name)}" for field, name in new)
        if not sys.stdin.isatty():
            raise RequestError(
                f"{file} names models that were never opened here:{listed}\nGive --trust to open them, or "
                "name others with flags such as --base."
            )
        question = f"{printable(str(file))} names models that were never opened here:{listed}\nOpen them?"
        click.confirm(question, abort=True, err=True)
    for field, name in new:
        _check_name(name, images=field.endswith(" images"))


def named(request: Request) -> Iterator[tuple[str, str]]:
    """Field and name of everything that a request opens beside what comes with stillmotion."""
    for field, name in model_names(request):
        inside = name in bundled_names() or name in bundled_loras() or (field, name) == ("motion", "none")
        if not inside or os.path.lexists(name):
            yield field, name
    for condition in request.conditions:
        for what, name in condition.files():
            yield f"{kind_of(condition)} {what}", name


def remember(request: Request) -> None:
    """Notes that the user has opened what this request names."""
    marks = {_mark(name) for _, name in named(request)} - _opened()
    if marks:
        try:
            _record().parent.mkdir(parents=True, exist_ok=True)
            with _record().open("a", encoding="ascii") as file:
                file.writelines(f"{mark}\n" for mark in sorted(marks))
        except OSError:  # a home that cannot be written: the next redo asks again
            return


def _check_name(name: str, images: bool = False) -> None:
    """WrongKind for a file that is none of weights (or images) by its name."""
    path = Path(name).expanduser()
    what, suffixes = ("images", MEDIA) if images else ("weights", SUFFIXES)
    good = path.is_file() and path.suffix.lower() in suffixes
    if path.exists() and not good and not path.is_dir():
        raise WrongKind(
            f"{name} is no file of {what} by its name ({', '.join(suffixes)}); it was not opened."
        )


def _record() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "stillmotion" / "opened"


def _opened() -> set[str]:
    try:
        return set(_record().read_text("ascii").split())
    except (OSError, ValueError):
        return set()


def _mark(name: str) -> str:
    """Of the absolute path where there is one: the same name in another folder is another file."""
    place = os.path.abspath(os.path.expanduser(name))
    known = place if os.path.lexists(place) else name
    return hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()
