"""`stillmotion merge BASE OUT`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import get_args

import click

from stillmotion.checkpoints.identify import identify
from stillmotion.cli.options import PathType, dtype_option, force_option, lora_weights
from stillmotion.cli.output import result
from stillmotion.cli.progress import quiet_libraries, waiting
from stillmotion.errors import RequestError
from stillmotion.request.aliases import REQUEST
from stillmotion.request.request import LoraAlpha


@click.command()
@click.argument("base", metavar="BASE", type=PathType(path_type=str))
@click.argument("target", metavar="OUT", type=PathType(path_type=Path))
@click.option(
    "--lora",
    "loras",
    metavar="FILE=WEIGHT",
    multiple=True,
    help="LoRA to bake into BASE; may be given several times; WEIGHT as in `stillmotion animate --lora`.",
)
@click.option(
    "--motion-lora",
    "motion_loras",
    metavar="FILE=WEIGHT",
    multiple=True,
    help="The same for motion LoRAs, when BASE is a motion module.",
)
@click.option(
    "--with",
    "others",
    metavar="FILE=SHARE",
    multiple=True,
    help="Model of the same kind to mix in, with its share of 1; may be given several times.",
)
@click.option(
    "--lora-alpha",
    type=click.Choice(get_args(LoraAlpha)),
    default="use",
    help="Whether LoRAs are scaled by their alpha [default: use].",
)
@click.option("--lora-parity", "old_alpha", type=click.Choice(["kohya", "original"]), hidden=True)
@dtype_option
@force_option
def merge(
    base: str,
    target: Path,
    loras: tuple[str, ...],
    motion_loras: tuple[str, ...],
    others: tuple[str, ...],
    lora_alpha: LoraAlpha,
    old_alpha: str | None,
    dtype: str | None,
    force: bool,
) -> None:
    """Bake LoRAs into BASE or mix other models into it, and write the result to OUT.

    BASE is a text-to-image model or a motion module, OUT a folder or a .safetensors. Mixed, each number is
    BASE * (1 - shares) + FILE * SHARE + ...; all must be of the same architecture.
    """
    if not (loras or motion_loras or others):
        raise click.UsageError("Nothing to merge: give --lora, --motion-lora or --with.")
    all_loras = lora_weights((*loras, *motion_loras))
    if old_alpha is not None:
        lora_alpha = REQUEST.value("lora_parity", old_alpha)
    shares = dict(map(_share, others))
    with waiting() as bars, bars.stage("merging"):
        from stillmotion.checkpoints import merge
        from stillmotion.sampling.loading import as_dtype

        quiet_libraries()
        stored = as_dtype(dtype) if dtype else None
        place = merge.merge(base, target, all_loras, shares, stored, lora_alpha, force)
    result(place, identify(place).title)


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    with suppress(ValueError):
        if name:
            return name, float(share)
    raise RequestError(f"--with is {text}, but should be FILE=SHARE: give --with other.safetensors=0.3.")
