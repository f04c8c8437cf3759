"""Conditions: what else steers a clip than text. Each kind is one file and one row (sampling/conditions/).

A condition is plain data with fields like those of a Request. From them and the row come its flag and its
help, its form as text (`FILE:HINTS,scale=0.8`), JSON, the metadata in clips, and the table in the docs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)
from typing_extensions import Self

from stillmotion.errors import RequestError
from stillmotion.request.fields import Flag, arguments_help, extra_of
from stillmotion.request.messages import sentence, shown

TABLE = "stillmotion.sampling.conditions"
"""The module whose CONDITIONS are the kinds there are; named here, since requests know no rooms above."""

NONE = "none"
"""On the command line: no condition of this kind, such as one that a clip brings."""

_SETTING = re.compile(r"(?P<rest>.*),\s*(?P<key>\w+)\s*=\s*(?P<value>[^,=]*)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class ConditionData(BaseModel):
    """The fields of one condition. Immutable; wrong values raise `RequestError`.

    A subclass has fields made by `request.fields.field`; those that stand in `first` are given without a
    name, in Python by position, in text before the settings and with a colon between. A field with
    `opens="weights"` or `opens="images"` holds the path of such files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flag: ClassVar[str]
    help: ClassVar[str]
    example: ClassVar[str]
    first: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **fields: Any) -> None:
        if len(values) > len(self.first):
            raise RequestError(f"{type(self).__name__} takes {', '.join(self.first)}; name the others.")
        given = dict(zip(self.first, values, strict=False))
        if twice := given.keys() & fields.keys():
            raise RequestError(f"{', '.join(sorted(twice))} of {type(self).__name__} is given twice.")
        try:
            super().__init__(**given, **fields)
        except ValidationError as error:
            problems = (sentence(type(self), problem, f" of {self.flag}") for problem in error.errors())
            raise RequestError(" ".join(problems)) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.__doc__ = f"{cls.__doc__}\n\n{arguments_help(cls)}"

    @field_validator("*", mode="before")
    @classmethod
    def _paths_are_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": kind_of(self), **handler(self)}

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The condition as the command line gives it: FIRST:SECOND,setting=value,..."""
        keys = {cls.key(name): name for name in cls.model_fields}
        fields: dict[str, str] = {}
        rest = text
        while found := _SETTING.fullmatch(rest):
            rest, key = found["rest"], found["key"]
            name = keys.get(key, key)
            if name not in cls.model_fields:
                near = get_close_matches(key, keys, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(keys)}."
                raise RequestError(f"{cls.flag} has no setting {shown(key)}: {hint}")
            if name in fields:
                raise RequestError(f"{key} is given twice in {cls.flag} {shown(text)}.")
            fields[name] = found["value"].strip()
        for name, value in zip(cls.first, _split(rest, len(cls.first)), strict=False):
            if name in fields:
                raise RequestError(f"{name} is given twice in {cls.flag} {shown(text)}.")
            if value:
                fields[name] = value
        return cls(**fields)

    @classmethod
    def key(cls, name: str) -> str:
        """What a field is called in text: `from` for `start`."""
        return next(iter(extra_of(cls, name)["flags"]), name)

    @classmethod
    def form(cls) -> str:
        """How it is written as text: FILE:HINTS,scale=1,from=0."""
        settings = (f"{cls.key(name)}={_plain(info.default)}" for name, info in cls.settings().items())
        return ",".join([":".join(map(str.upper, cls.first)), *settings])

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The fields that are given by name."""
        return {name: info for name, info in cls.model_fields.items() if name not in cls.first}

    @classmethod
    def flag_help(cls) -> str:
        """What it does and how it is written, with every field."""
        each = "; ".join(
            f"{_upper(cls, name)}: {info.description}" for name, info in cls.model_fields.items()
        )
        return f"{cls.help}, as {cls.form()}; may be given several times; {each}"

    def files(self) -> Iterator[tuple[str, str]]:
        """What it opens: ("weights" or "images", path or name on the hub)."""
        for name in type(self).model_fields:
            opens, value = extra_of(type(self), name).get("opens"), getattr(self, name)
            if opens and value is not None:
                yield opens, value


def condition_kinds() -> Mapping[str, str]:
    """Name of each kind -> module:Class."""
    kinds: Mapping[str, str] = import_module(TABLE).CONDITIONS
    return kinds


def condition_class(kind: str) -> type[ConditionData]:
    """The class of a kind; RequestError where there is none."""
    place = condition_kinds().get(kind)
    if place is None:
        known = ", ".join(condition_kinds()) or "none"
        raise RequestError(f"There is no condition of the kind {shown(kind)}; known are {known}.")
    module, _, name = place.partition(":")
    found: type[ConditionData] = getattr(import_module(module), name)
    return found


def kind_of(condition: ConditionData) -> str:
    """The name of a condition's kind."""
    place = f"{type(condition).__module__}:{type(condition).__qualname__}"
    for kind, each in condition_kinds().items():
        if each == place:
            return kind
    raise RequestError(f"{type(condition).__name__} is no known condition: it has no row in {TABLE}.")


def conditions_of(given: Mapping[str, Any]) -> tuple[ConditionData, ...]:
    """Conditions of what may be given: {"conditions": [...], "controls": [...], KIND: [...]}.

    Each is a condition, a mapping of its fields, or text; where the kind is not said by its name it stands
    in the mapping ("kind"). Ordered by kind, so that two requests for the same are equal.
    """
    found = []
    for name, values in given.items():
        kind = name if name in condition_kinds() else None
        if values is None or (kind and isinstance(values, str) and values.strip().lower() == NONE):
            continue
        several = isinstance(values, (list, tuple))
        for value in values if several else [values]:
            if not (several and kind and isinstance(value, str) and value.strip().lower() == NONE):
                found.append(_condition(value, kind))
    order = list(condition_kinds())
    return tuple(sorted(found, key=lambda condition: order.index(kind_of(condition))))


def condition_flags() -> Iterator[Flag]:
    """The option of each kind."""
    for kind in condition_kinds():
        cls = condition_class(kind)
        yield Flag(kind, (cls.flag,), str, cls.flag_help(), None, (), True)


def conditions_table() -> str:
    """All kinds as a table in Markdown, for the docs."""
    rows = ["| flag | what it does | fields |", "| --- | --- | --- |"]
    for kind in condition_kinds():
        cls = condition_class(kind)
        fields = "<br>".join(
            f"`{name}`{'' if cls.key(name) == name else f' (`{cls.key(name)}=`)'}: {info.description}"
            for name, info in cls.model_fields.items()
        )
        rows.append(f"| `{cls.flag} {cls.example}` | {cls.help} | {fields} |")
    return "\n".join(rows)


def _condition(value: Any, kind: str | None) -> ConditionData:
    if isinstance(value, ConditionData):
        own = kind_of(value)
        if kind not in (None, own):
            raise RequestError(f"{kind} holds a {type(value).__name__}: give it as conditions=[...].")
        return value
    if isinstance(value, str) and kind:
        return condition_class(kind).from_text(value)
    if not isinstance(value, Mapping):
        raise RequestError(
            f"A condition is {shown(value)}, but should be one such as stillmotion.ControlNet(...), or the "
            "object of its fields with its kind."
        )
    fields = dict(value)
    own = fields.pop("kind", kind)
    if not isinstance(own, str) or kind not in (None, own):
        raise RequestError(
            f"A condition has the kind {shown(own)}; known are {', '.join(condition_kinds())}."
        )
    if not all(isinstance(name, str) for name in fields):
        raise RequestError(f"A condition is {shown(value)}, but its fields have names.")
    return condition_class(own)(**fields)


def _split(text: str, parts: int) -> list[str]:
    """At the first colons, except those behind the letter of a drive (C:\\)."""
    found: list[str] = []
    start = 0
    while len(found) < parts - 1:
        after = start + 2 if _DRIVE.match(text, start) else start
        colon = text.find(":", after)
        if colon < 0:
            break
        found.append(text[start:colon])
        start = colon + 1
    return [*found, text[start:]]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _upper(cls: type[ConditionData], name: str) -> str:
    return name.upper() if name in cls.first else cls.key(name)
