"""`stillmotion redo FILE`: a clip carries its request, so it can be made again, exactly or nearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillmotion.cli import Settings
from stillmotion.cli.options import (
    PathType,
    count_option,
    device_option,
    given,
    output_options,
    request_options,
)
from stillmotion.cli.render import render
from stillmotion.cli.trust import MODELS, check_trust, trust_option
from stillmotion.errors import DataError
from stillmotion.request.request import REPEATED
from stillmotion.sampling.jobs import Job
from stillmotion.sampling.target import Target, free_name
from stillmotion.video import open_frames


@click.command()
@click.argument("file", type=PathType(path_type=Path))
@output_options
@count_option
@device_option
@click.option("--prompt", help="What should be seen instead.")
@trust_option
@request_options
@click.pass_obj
def redo(
    settings: Settings,
    file: Path,
    output: str | None,
    count: int,
    device: str | None,
    trust: bool,
    **options: Any,
) -> None:
    """Make the clip in FILE again.

    Without flags the same frames come out on the same machine; every flag changes one thing of the request.
    Models that only FILE names are opened after a question, or with --trust.
    """
    request = open_frames(file).request
    if request is None:
        raise DataError(
            f"{file} carries no request: only clips made by stillmotion do, and only if nothing has stripped "
            "their metadata. Make one with `stillmotion animate`."
        )
    fields = given(options)
    own = {name: {} if name in REPEATED else None for name in MODELS if name in fields}
    check_trust(file, request.replace(**own), trust)
    place = output or str(free_name(file.with_name(f"{file.stem}-redo{file.suffix}")))
    render(Job.of(request.replace(**fields), Target.of(place, options), count, device), settings)
