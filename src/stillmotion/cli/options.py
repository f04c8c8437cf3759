"""Flags: those of a Request, written from its fields, and those for the files that come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import click

from stillmotion.cli.completion import of_flag
from stillmotion.cli.hints import dropped
from stillmotion.errors import RequestError
from stillmotion.request import Request, aliases
from stillmotion.request.conditions import condition_kinds
from stillmotion.request.layer_weights import LayerWeights
from stillmotion.request.request import LORAS, REPEATED, Flag
from stillmotion.video.palette import Dither

METAVARS = {int: "NUMBER", float: "NUMBER", str: "TEXT"}


class PathType(click.Path):
    """A path; quotes and file:// of drag and drop are taken off."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As `click.Path` does, of the cleaned text."""
        if isinstance(value, str) and "\0" in value:
            self.fail(f"{value!r} has a null character in it, which no file name has.", param, ctx)
        return super().convert(dropped(value) if isinstance(value, str) else value, param, ctx)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for every field of Request but the prompt; not given is None.

    Values stay text: Request reads them, so a wrong one gets the same sentence everywhere.
    """
    for flag in reversed([flag for flag in Request.flags() if flag.names]):
        command = click.option(
            *flag.names,
            flag.field,
            metavar=METAVARS[flag.type],
            multiple=flag.repeated,
            help=_help(flag),
            shell_complete=of_flag(flag),
        )(command)
    for old in aliases.REQUEST.names:
        command = click.option(f"--{old.replace('_', '-')}", old, hidden=True)(command)
    return command


def _help(flag: Flag) -> str:
    text = flag.help[0].upper() + flag.help[1:]
    if flag.choices:
        text += f": {', '.join(flag.choices)}"
    return f"{text}." if flag.default in (None, "") else f"{text} [default: {flag.default}]."


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Request among the options that the user really gave."""
    names = (*Request.model_fields, *condition_kinds(), *aliases.REQUEST.names)
    asked = {name: options[name] for name in names if options.get(name) not in (None, ())}
    fields = aliases.REQUEST.updated(asked)
    for name in ("base", "motion", "vae"):
        if name in fields:
            fields[name] = dropped(fields[name])
    for name in REPEATED:
        if name in fields:
            fields[name] = [_weighed(item, name) for item in fields[name]]
    for name in condition_kinds():
        if name in fields:
            fields[name] = [dropped(item) for item in fields[name]]
    if str(fields.get("seed")).strip() == "-1":  # as other programs call a random one
        fields["seed"] = None
    return fields


def lora_weights(items: Iterable[str]) -> dict[str, float | dict[str, float]]:
    """Files and weights of repeated FILE=WEIGHT, 1 where none is given; RequestError for a wrong weight."""
    pairs = [_weighed(item, LORAS[0]).rpartition("=") for item in items]
    return {name or weight: LayerWeights.of(weight if name else 1.0).spec for name, _, weight in pairs}


def _weighed(item: str, name: str) -> str:
    """FILE or FILE=WEIGHT (or =WORD), the file as it was dropped into the terminal."""
    item = dropped(item)
    item = _with_equals(item) if name in LORAS else item
    path, equals, weight = item.rpartition("=")
    return f"{dropped(path)}={weight}" if equals else item


def _with_equals(lora: str) -> str:
    """FILE:WEIGHT is FILE=WEIGHT; other colons belong to the name or, after =, to the weight."""
    path, _, weight = lora.rpartition(":")
    try:
        float(weight)
    except ValueError:
        return lora
    return f"{path}={weight}" if path and not _is_weight(lora.rpartition("=")[2]) else lora


def _is_weight(text: str) -> bool:
    try:
        LayerWeights.of(text)
    except RequestError:
        return False
    return True


class KnownChoice(click.Choice):
    """A choice that takes old names of its values too, without showing them."""

    def __init__(self, choices: Iterable[str], old: Iterable[str] = ()) -> None:
        super().__init__(list(choices))
        self.old = frozenset(old)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.old else super().convert(value, param, ctx)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where and how clips are written; they arrive as `output`, `force`, ..."""
    for option in reversed(_OUTPUT):
        command = option(command)
    return command


force_option = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
dtype_option = click.option(
    "--dtype",
    metavar="TEXT",
    help="Precision to store: float32, float16, bfloat16 [default: that of the file].",
)

_OUTPUT = (
    click.option(
        "-o",
        "--output",
        type=PathType(path_type=str),
        help="File to write: .gif, .webp, .apng, .mp4, .webm, .png for a still, or a folder for PNGs.",
    ),
    force_option,
    click.option(
        "--scale", type=click.IntRange(1), default=1, help="Enlarge crisply, by a whole number [default: 1]."
    ),
    click.option(
        "--dither",
        type=click.Choice(get_args(Dither)),
        default="none",
        help="For GIF: smoother gradients, larger files [default: none].",
    ),
    click.option(
        "--quality",
        type=click.IntRange(0, 100),
        default=90,
        help="For WebP (100 is lossless) and video [default: 90].",
    ),
    click.option("--sheet", type=PathType(path_type=Path), help="Also write all frames on one image (.png)."),
)

count_option = click.option(
    "-n",
    "--n",
    "count",
    type=click.IntRange(1, 100),
    default=1,
    help="So many seeds: a file for each, and all side by side in OUTPUT [default: 1].",
)
device_option = click.option("--device", help="cpu, cuda, mps, ... [default: what is there].")
