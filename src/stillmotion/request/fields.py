"""A field with everything that is made of it: flag, help, rule and example of its errors, form widget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Field

T = TypeVar("T")


def field(
    default: Any,
    help: str,
    rule: str,
    example: str,
    *flags: str,
    choices: tuple[str, ...] = (),
    repeated: bool = False,
    opens: str | None = None,
    **limits: Any,
) -> Any:
    """A pydantic field with what users are told of it.

    Args:
        default: its value when nothing is said; `...` if something must be.
        help: what it is, for `--help`, docs and `help(stillmotion.Request)`.
        rule: completes "frames is 0, but RULE: give FLAG EXAMPLE".
        example: a value that works, as it is typed.
        flags: its names on the command line.
        choices: all its values, where they are few.
        repeated: whether it may be given several times on the command line.
        opens: "weights" or "images" for the path of such files, in conditions.
        limits: pydantic's constraints.
    """
    extra: dict[str, Any] = {"flags": list(flags), "rule": rule, "example": example, "repeated": repeated}
    if choices:
        extra["choices"] = list(choices)
    if opens:
        extra["opens"] = opens
    return Field(default, description=help, json_schema_extra=extra, **limits)


def extra_of(cls: type[BaseModel], name: str) -> dict[str, Any]:
    """Flags, rule, example, choices and whether a field is repeated, as `field` was told."""
    extra = cls.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}


@dataclass(frozen=True)
class Flag:
    """One field as a command line option; `names` is empty for the prompt, `type` is int, float or str."""

    field: str
    names: tuple[str, ...]
    type: type
    help: str
    default: Any
    choices: tuple[str, ...]
    repeated: bool
    """may be given several times; the values are passed to `Request` as a list"""


def flag_of(cls: type[BaseModel], name: str) -> Flag:
    """The option of a field."""
    info, extra = cls.model_fields[name], extra_of(cls, name)
    kinds = {info.annotation, *get_args(info.annotation)}
    kind = next((kind for kind in (int, float) if kind in kinds and not extra["repeated"]), str)
    default = None if info.is_required() or extra["repeated"] else info.default
    choices = tuple(extra.get("choices", ()))
    return Flag(
        name, tuple(extra["flags"]), kind, info.description or "", default, choices, extra["repeated"]
    )


def arguments_help(cls: type[BaseModel]) -> str:
    """A line for each field, as an `Args:` section of a docstring."""
    lines = (f"    {name}: {info.description}." for name, info in cls.model_fields.items())
    return "\n".join(["Args:", *lines])


class FrozenDict(dict[str, T]):
    """A dict that cannot be changed and has a hash, so that what holds it is a key. Order does not count."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("A request does not change: use request.replace(...).")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


def frozen(value: Mapping[str, T]) -> FrozenDict[T]:
    """The mapping as a `FrozenDict`, and mappings inside it too."""
    return FrozenDict(
        {key: frozen(item) if isinstance(item, Mapping) else item for key, item in value.items()}  # type: ignore[misc]
    )
