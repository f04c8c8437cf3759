"""`stillmotion info FILE`: the request that a clip or latents carry; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stillmotion.cli.options import PathType
from stillmotion.cli.output import echo
from stillmotion.errors import DataError
from stillmotion.request import Request
from stillmotion.sampling.latents import EXTENSION, Latents
from stillmotion.video import open_frames


@click.command()
@click.argument("file", type=PathType(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON object for each request.")
def info(file: Path, as_json: bool) -> None:
    """Show how FILE was made: its prompt, seed, models and all other settings."""
    requests = _requests(file)
    if not requests:
        raise DataError(f"{file} carries no request: only clips and latents made by stillmotion do.")
    if as_json:
        echo("\n".join(request.to_json() for request in requests))
        return
    settings = [json.loads(request.to_json()) for request in requests]
    if len(settings) > 1:
        echo(f"{len(settings)} clips")
    for name in dict.fromkeys(name for each in settings for name in each):
        values = [_shown(each.get(name)) for each in settings]
        if name != "version" and any(values):
            echo(f"{name}: {values[0] if len(set(values)) == 1 else ' | '.join(values)}")


def _requests(file: Path) -> tuple[Request, ...]:
    if file.name.endswith(EXTENSION):
        return (Latents.load(file).request,)
    source = open_frames(file)
    return source.requests or (() if source.request is None else (source.request,))


def _shown(value: Any) -> str:
    if value in ({}, "", None):
        return ""
    return value if isinstance(value, str) else json.dumps(value)
