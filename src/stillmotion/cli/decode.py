"""`stillmotion decode FILE`: the last part of a clip whose sampling is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import click

from stillmotion.cli import Settings
from stillmotion.cli.options import PathType, device_option, output_options
from stillmotion.cli.output import result
from stillmotion.cli.progress import waiting
from stillmotion.cli.trust import opened_from, remember, trust_option
from stillmotion.errors import OutputError
from stillmotion.request.model_files import records_of
from stillmotion.sampling.jobs import finish
from stillmotion.sampling.latents import EXTENSION, Latents
from stillmotion.sampling.output_file import Target


@click.command()
@click.argument("file", type=PathType(path_type=Path))
@output_options
@device_option
@trust_option
@click.pass_obj
def decode(
    settings: Settings, file: Path, output: str | None, device: str | None, trust: bool, **options: Any
) -> None:
    """Finish a clip from what was sampled of it (a FILE.latents.safetensors).

    Such files are left when something stops `stillmotion animate` after sampling. They are kept here too.
    Models that only FILE names are opened after a question, or with --trust.
    """
    if output is None and not file.name.endswith(EXTENSION):
        raise OutputError(f"{file} does not tell the name of the clip: give it with --output.")
    target = Target.of(output or str(file.with_name(file.name.removesuffix(EXTENSION))), options)
    target.check_files()
    latents = Latents.load(file)
    only_vae = {"motion": "none", "loras": {}, "motion_loras": {}, "embeddings": {}, "conditions": []}
    found = opened_from(file, latents.request.replace(**only_vae), latents.files, trust)
    request = latents.request.replace(base=found.base, vae=found.vae)
    files = records_of(name for name in (found.base, found.vae) if name is not None)
    latents = replace(latents, request=request, files=files + latents.files)
    with waiting() as show:
        clip = finish(latents, target, device, show)
    remember(found)
    result(target.path, f"{len(clip)} frames, decoded in {monotonic() - settings.start:.1f} s")
