"""What the command line prints: the one way to the terminal, on which nothing from a file steers it."""

from __future__ import annotations

import ast
import re

import click

from stillmotion.foreign import printable

ARGUMENT = re.compile(r"`([a-z_]+)=([^`]*)`")
OTHER_FLAGS = {"overwrite": "--force", "ema": "--ema", "device": "--device"}
"""Arguments of functions that are no fields of a request, and the flags for them."""


def echo(text: str, err: bool = False) -> None:
    """A line on stdout or stderr; control characters in it are shown as escapes, not sent."""
    click.echo(printable(text), err=err)


def result(path: object, text: str) -> None:
    """What was made, and where; with --quiet only where."""
    from stillmotion.cli import Settings

    context = click.get_current_context(silent=True)
    settings = context.find_object(Settings) if context else None
    echo(str(path) if settings is not None and settings.quiet else f"{path}: {text}")


def in_flags(text: str) -> str:
    """A message of the library with flags: `frames=16` in backticks becomes --frames 16."""
    if not ARGUMENT.search(text):
        return text
    from stillmotion.request import Request  # only when something is to be said

    flags = OTHER_FLAGS | {flag.field: flag.names[0] for flag in Request.flags() if flag.names}
    return ARGUMENT.sub(lambda found: _flag(found[0], flags.get(found[1]), found[2]), text)


def _flag(written: str, flag: str | None, value: str) -> str:
    if flag is None:
        return written
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # FILE, or nothing
        given = value
    if given is True or given == "":
        return flag
    if isinstance(given, dict):
        return " ".join(
            f"{flag} {name}={each}" if each != "" else f"{flag} {name}" for name, each in given.items()
        )
    return f"{flag} {given}"
