"""`stillmotion train ...`: flags written from the fields of the training configs. Imports no torch."""

from __future__ import annotations

import types
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from stillmotion import training
from stillmotion.cli.options import KnownChoice, PathType
from stillmotion.request.aliases import TRAINING
from stillmotion.training import Kind, load_config


@click.group()
def train() -> None:
    """Train on clips or images of your own; every run resumes where it stopped."""


def option(name: str, field: FieldInfo, hidden: bool = False) -> click.Option:
    """The flag of one config field; unset flags leave the value of the config file or the default."""
    flag = "--" + name.replace("_", "-")
    kind, many = _unwrap_optional(field.annotation), False
    if get_origin(kind) is list:
        kind, many = get_args(kind)[0], True
    text = field.description or ""
    if field.default is not None and not field.is_required() and field.default != []:
        text += f"  [default: {_shown(field.default)}]"
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=text, hidden=hidden)
    kinds = {int: click.INT, float: click.FLOAT, Path: PathType(path_type=Path)}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    type_ = KnownChoice(choices, TRAINING.values.get(name, ())) if choices else kinds.get(kind, click.STRING)
    return click.Option([flag, name], type=type_, multiple=many, default=None, help=text, hidden=hidden)


def _unwrap_optional(annotation: Any) -> Any:
    """`X | None` -> X."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def command(name: str, kind: Kind) -> click.Command:
    """A training command whose flags are the fields of the kind's config."""

    def call(config: Path | None, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value not in (None, ())}
        lists = {name: list(value) for name, value in given.items() if isinstance(value, tuple)}
        outcome = training.train(load_config(kind.config, config, **given | lists))
        if outcome and outcome.signal:
            click.get_current_context().exit(128 + outcome.signal)  # as shells say it: 130 for Ctrl-C

    config = click.Option(
        ["--config"],
        type=PathType(path_type=Path),
        help="YAML file with any of the fields below; flags win over it",
    )
    options: list[click.Parameter] = [
        config,
        *(option(field, info) for field, info in kind.config.model_fields.items()),
    ]
    fields = kind.config.model_fields
    options += [option(old, fields[new], hidden=True) for old, new in TRAINING.names.items() if new in fields]
    text = cleandoc(kind.help)
    return click.Command(name, params=options, callback=call, help=text, short_help=text.splitlines()[0])


for name, kind in training.KINDS.items():
    train.add_command(command(name, kind))
