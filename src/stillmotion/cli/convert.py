"""`stillmotion convert IN OUT`."""

from __future__ import annotations

from pathlib import Path

import click

from stillmotion.checkpoints.identify import identify
from stillmotion.cli.options import KnownChoice, PathType, dtype_option, force_option
from stillmotion.cli.output import result
from stillmotion.cli.progress import quiet_libraries, waiting
from stillmotion.request.aliases import ORIGINAL


@click.command()
@click.argument("source", metavar="IN", type=PathType(path_type=str))
@click.argument("target", metavar="OUT", type=PathType(path_type=Path))
@click.option(
    "--layout",
    type=KnownChoice(["ldm", "animatediff", "diffusers", "kohya", "peft", "hotshot"], [ORIGINAL]),
    help="Layout of OUT [default: diffusers for a folder; for a file ldm, animatediff, or kohya for a "
    "style LoRA].",
)
@dtype_option
@click.option("--ema", is_flag=True, help="Take the averaged weights of a checkpoint that has both.")
@force_option
def convert(source: str, target: Path, layout: str | None, dtype: str | None, ema: bool, force: bool) -> None:
    """Write the model in IN to OUT in another layout.

    Motion modules have the layouts animatediff, diffusers (a folder or a file) and hotshot; LoRAs of all
    kinds have kohya, peft, diffusers and animatediff; text-to-image models are one file (ldm) or a folder
    (diffusers). OUT is a folder, or ends in .safetensors. No number changes unless --dtype says so.
    """
    with waiting() as bars, bars.stage("converting"):
        from stillmotion.checkpoints import convert
        from stillmotion.sampling.loading import as_dtype

        quiet_libraries()
        place = convert.convert(source, target, layout, as_dtype(dtype) if dtype else None, force, ema)
    result(place, identify(place).title)
