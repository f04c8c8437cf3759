"""`stillmotion inspect FILE`: what a file of weights is, which base it fits, and how it is used."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import click

from stillmotion.checkpoints.checkpoint import open_checkpoint
from stillmotion.checkpoints.file_kinds import BASES, FileInfo
from stillmotion.cli.options import PathType
from stillmotion.cli.output import echo
from stillmotion.motion.families import known_families

UNKNOWN = 2
"""Exit code if any of the files is of no known kind."""


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, type=PathType(path_type=str))
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object per file.")
@click.option("--families", is_flag=True, help="List the families of motion modules instead.")
@click.pass_context
def inspect(ctx: click.Context, files: tuple[str, ...], as_json: bool, families: bool) -> None:
    """Say what a file of weights is, what it fits and how to use it.

    FILE is a checkpoint, a motion module, a LoRA or another .safetensors, .ckpt, .pt or .bin, a folder, or a
    name on the hub. Only headers are read; no code inside a file is run. Exits with 2 if it is not known.
    """
    if families:
        echo(_families())
    elif not files:
        raise click.UsageError("Name at least one file, or ask for --families.")
    found = [replace(open_checkpoint(file).info, source=file) for file in files]
    for kind in found:
        echo(json.dumps(_as_json(kind)) if as_json else "\n".join(kind.describe()))
    if not all(kind.known for kind in found):
        ctx.exit(UNKNOWN)


def _as_json(kind: FileInfo) -> dict[str, Any]:
    return asdict(kind) | {"spec": kind.spec.columns() if kind.spec else None}


def _families() -> str:
    rows = [("family", "fits", "frames", "size", "sampler", "steps", "guidance")]
    for name, family in known_families().items():
        sampling = family.sampling
        rows.append(
            (
                name,
                BASES.get(family.base, family.base),
                str(sampling.frames),
                f"{sampling.width}x{sampling.height}",
                str(sampling.scheduler),
                str(sampling.num_inference_steps),
                f"{sampling.guidance_scale:g}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
