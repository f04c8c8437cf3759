"""`stillmotion sheet FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from stillmotion.cli.options import PathType
from stillmotion.cli.output import result
from stillmotion.sampling.output_file import check_sheet, free_name, save_sheet
from stillmotion.video import Clip


@click.command()
@click.argument("file", type=PathType(path_type=Path))
@click.option("-o", "--output", type=PathType(path_type=Path), help="File to write, .png.")
@click.option("-f", "--force", is_flag=True, help="Overwrite a file that exists.")
@click.option("--columns", type=click.IntRange(1), help="Frames in a row [default: nearly a square].")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Size [default: 1].")
@click.option("--numbers", is_flag=True, help="Number the frames.")
@click.option("--caption", default="", help="A line of text above.")
def sheet(
    file: Path,
    output: Path | None,
    force: bool,
    columns: int | None,
    scale: float,
    numbers: bool,
    caption: str,
) -> None:
    """All frames of a clip on one image; FILE is any GIF, WebP, APNG, video or folder of PNGs."""
    path = output or free_name(Path(f"{file.stem}-sheet.png"))
    check_sheet(path, force)
    clip = Clip.load(file)
    save_sheet(clip, path, force, columns=columns, scale=scale, numbers=numbers, caption=caption)
    result(path, f"{len(clip)} frames of {file}")
