"""What the command line prints: the one way to the terminal, on which nothing from a file steers it."""

from __future__ import annotations

import click

from stillmotion.foreign import printable


def echo(text: str, err: bool = False) -> None:
    """A line on stdout or stderr; control characters in it are shown as escapes, not sent."""
    click.echo(printable(text), err=err)
