"""`stillmotion info FILE`: the request that a clip or latents carry; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stillmotion.cli.options import PathType
from stillmotion.cli.output import echo
from stillmotion.errors import DataError
from stillmotion.sampling.latents import EXTENSION, Latents
from stillmotion.video import open_frames


@click.command()
@click.argument("file", type=PathType(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs: the request as one JSON object.")
def info(file: Path, as_json: bool) -> None:
    """Show how FILE was made: its prompt, seed, models and all other settings."""
    request = Latents.load(file).request if file.name.endswith(EXTENSION) else open_frames(file).request
    if request is None:
        raise DataError(f"{file} carries no request: only clips and latents made by stillmotion do.")
    if as_json:
        echo(request.to_json())
        return
    for name, value in json.loads(request.to_json()).items():
        if value not in ({}, "") and name != "version":
            echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
