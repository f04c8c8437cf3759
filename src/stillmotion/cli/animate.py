"""`stillmotion animate PROMPT`."""

from __future__ import annotations

from typing import Any

import click

from stillmotion.cli import Settings
from stillmotion.cli.hints import refuse_file
from stillmotion.cli.options import count_option, device_option, given, output_options, request_options
from stillmotion.cli.render import render
from stillmotion.request import Request
from stillmotion.sampling.jobs import Job
from stillmotion.sampling.output_file import Target, name_of


@click.command()
@click.argument("prompt")
@output_options
@count_option
@device_option
@request_options
@click.pass_obj
def animate(
    settings: Settings, prompt: str, output: str | None, count: int, device: str | None, **options: Any
) -> None:
    """Make an animated clip of PROMPT.

    Without --base it is drawn by the small model that comes with stillmotion (see `stillmotion concepts`).
    What is not given is as the model recommends. The file carries its settings: `stillmotion redo FILE`.
    """
    refuse_file(prompt)
    request = Request.parse(prompt=prompt, **given(options))
    target = Target.of(output or str(name_of(prompt)), options)
    render(Job.of(request, target, count, device), settings)
