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
from stillmotion.cli.trust import opened_from, trust_option
from stillmotion.errors import DataError
from stillmotion.request import Request
from stillmotion.request.conditions import condition_kinds
from stillmotion.request.model_files import MODELS
from stillmotion.request.request import REPEATED
from stillmotion.sampling.jobs import Job
from stillmotion.sampling.output_file import Target, free_name
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
    """Make the clip in FILE again, or all clips that FILE shows side by side.

    Without flags the same frames come out on the same machine; every flag changes one thing of the request.
    Models that only FILE names are opened after a question, or with --trust.
    """
    source = open_frames(file)
    found = source.requests or (() if source.request is None else (source.request,))
    if not found:
        raise DataError(
            f"{file} carries no request: only clips made by stillmotion do, and only if nothing has stripped "
            "their metadata. Make one with `stillmotion animate`."
        )
    if len(found) > 1 and count > 1:
        raise click.UsageError(f"{file} shows {len(found)} clips, which are all made again: leave -n out.")
    fields = given(options)
    own: dict[str, Any] = {name: {} if name in REPEATED else None for name in MODELS if name in fields}
    own |= {kind: None for kind in condition_kinds() if kind in fields}
    requests = [opened_from(file, each.replace(**own), source.files, trust) for each in found]
    target = Target.of(output or str(free_name(_beside(file, requests[0]))), options)
    requests = [each.replace(**fields) for each in requests]
    if len(requests) > 1:
        job = Job(tuple(requests), target, device)
    else:
        job = Job.of(requests[0], target, count, device)
    render(job, settings)


def _beside(file: Path, request: Request) -> Path:
    """x.gif -> x-redo.gif; what was on a still (a contact sheet) becomes a GIF."""
    still = file.suffix.lower() == ".png" and request.frames != 1
    return file.with_name(f"{file.stem}-redo{'.gif' if still else file.suffix}")
