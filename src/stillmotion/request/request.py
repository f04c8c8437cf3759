"""Request: one validated description of a clip, of which flags, JSON, forms and the tags in files are made.

    Request = Prompts + Output + Sampling + Models      each field in one section (sections.py)
              + conditions                              what else steers the clip (conditions.py)

Fields are given and read flat (`request.frames`), or by section (`request.sampling`). A field that is None
means "the default of the model in use", which `Request.filled` puts in. Whatever is wrong with a field, one
sentence explains it: what was given, the rule, an example that works. Values are checked once, when a Request
is made; `filled` and `with_models` put in what was checked before.
"""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import SerializeAsAny
from typing_extensions import Self, Unpack

from stillmotion.errors import RequestError, StillmotionWarning
from stillmotion.foreign import parse_json
from stillmotion.request import aliases
from stillmotion.request.conditions import (
    ConditionData,
    condition_flags,
    condition_kinds,
    conditions_of,
    kind_of,
)
from stillmotion.request.fields import Flag, arguments_help, field, flag_of
from stillmotion.request.messages import unknown_field
from stillmotion.request.sections import (
    DTYPES,
    LORAS,
    REPEATED,
    SCHEDULERS,
    LoraAlpha,
    ModelFields,
    Models,
    Output,
    Prompts,
    Sampling,
    Section,
)
from stillmotion.request.typed import RequestFields

__all__ = ["DTYPES", "FILLED_BY_MODEL", "LORAS", "REPEATED", "SCHEDULERS", "Flag", "LoraAlpha", "Request"]

S = TypeVar("S", bound=Section)

REQUEST_VERSION = 9
"""Stands in the JSON; goes up by one with every new field: older installations then know what they miss."""

JSON_BYTES = 2**20
"""A longer text is no request."""

FILLED_BY_MODEL = (
    "frames",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "fps",
    "noise_alpha",
)

SECTIONS: dict[str, type[Section]] = {
    "prompts": Prompts,
    "output": Output,
    "sampling": Sampling,
    "models": ModelFields,
}
"""Sections by the names under which a request gives and takes them."""


class Request(ModelFields, Sampling, Output, Prompts):
    """What to animate and how. Immutable; wrong values raise `RequestError` with one sentence for each."""

    conditions: tuple[SerializeAsAny[ConditionData], ...] = field(
        (),
        "what else steers the clip, such as ControlNets",
        "it must be a list of conditions",
        "stillmotion.ControlNet(...)",
        repeated=True,
    )

    if TYPE_CHECKING:  # pydantic makes it of the fields; with this an editor knows what they may be given as

        def __init__(self, *, prompt: str = ..., **fields: Unpack[RequestFields]) -> None: ...

    @classmethod
    def input_form(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Flat fields by their present names, of fields given flat, by old names, or in sections.

        Conditions may be given as a list (`conditions`, `controls`), or under the name of their kind.
        """
        steering = {name: fields[name] for name in _condition_names() if name in fields}
        flat = {name: value for name, value in fields.items() if name not in {*SECTIONS, *steering}}
        found = aliases.REQUEST.updated(flat)
        for name in SECTIONS.keys() & fields.keys():
            section = fields[name]
            if isinstance(section, Section):
                section = section.given()
            elif not isinstance(section, Mapping):
                raise RequestError(f"{name} is a section of a request: give its fields, such as a mapping.")
            for each, value in aliases.REQUEST.updated(section).items():
                if each not in SECTIONS[name].model_fields:
                    raise RequestError(unknown_field(SECTIONS[name], each, f"The section {name}"))
                if each in found and found[each] != value:
                    raise RequestError(f"{each} is given twice with different values, once in {name}.")
                found[each] = value
        return {**found, "conditions": conditions_of(steering)} if steering else found

    @property
    def prompts(self) -> Prompts:
        """What is said: prompt, negative_prompt, clip_skip."""
        return self._section(Prompts)

    @property
    def output(self) -> Output:
        """Length, size and rate of the clip."""
        return self._section(Output)

    @property
    def sampling(self) -> Sampling:
        """How it is drawn."""
        return self._section(Sampling)

    @property
    def models(self) -> Models:
        """What must be loaded for it: the hashable key under which an Animator can be kept."""
        files = (name for each in self.conditions for what, name in each.files() if what == "weights")
        models = self._section(Models)
        return models.model_copy(update={"condition_models": tuple(files)}) if self.conditions else models

    @property
    def controls(self) -> tuple[ConditionData, ...]:
        """The same as `conditions`."""
        return self.conditions

    def _section(self, kind: type[S]) -> S:
        fields = self.model_fields_set & kind.model_fields.keys()
        values = {name: getattr(self, name) for name in kind.model_fields if name in type(self).model_fields}
        return cast("S", kind.model_construct(fields, **values))

    def replace(self, **fields: Any) -> Self:
        """The same request with other values, validated again; conditions replace those of their kind."""
        kinds = fields.keys() & condition_kinds().keys()
        if kinds and not fields.keys() & {"conditions", "controls"}:
            fields["conditions"] = [each for each in self.conditions if kind_of(each) not in kinds]
        return self.parse(**{**self.given(), **self.input_form(fields)}) if fields else self

    def with_models(self, models: Section) -> Self:
        """The request that names these models; RequestError if it asks for others already."""
        ours = models.given()
        for name, value in ours.items():
            asked = getattr(self, name)
            if asked not in (None, {}, value):
                raise RequestError(
                    f"The request asks for the {name} {asked!r}, but this Animator holds {value!r}: make "
                    f"another one with Animator.load({name}={asked!r})."
                )
        return self.model_copy(update=ours)

    def filled(self, defaults: Mapping[str, Any]) -> CompleteRequest:
        """The complete request: what was not given comes from the model's `defaults`, and a seed is drawn.

        The result says everything needed to make the same clip again. `defaults` are values of fields as a
        request or a model card holds them. Raises `RequestError` if they name no field, or if the model has
        no default for something that was left open.
        """
        for name in defaults:
            if name not in type(self).model_fields:
                raise RequestError(unknown_field(type(self), name))
        own = {name: getattr(self, name) for name in type(self).model_fields}
        given = {name: value for name, value in self.given().items() if value is not None}
        fields = {**own, **defaults, **given}
        missing = [name for name in FILLED_BY_MODEL if fields[name] is None]
        if missing:
            arguments = " and ".join(f"`{name}=`" for name in missing)
            raise RequestError(f"The model has no default for {' and '.join(missing)}: give {arguments}.")
        if fields["seed"] is None:
            fields["seed"] = secrets.randbelow(2**32)
        return cast("CompleteRequest", self.model_copy(update=fields))

    def to_json(self) -> str:
        """One line of ASCII; fields left to the model are left out. `Request.from_json` reads it back."""
        fields = self.model_dump(exclude_unset=True, exclude_none=True)
        if not self.conditions:  # older installations need not wonder
            fields.pop("conditions", None)
        return json.dumps({"version": REQUEST_VERSION, **fields})

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> Self:
        """The request of a JSON text or object.

        Fields that only a newer stillmotion knows are left out with a warning that names them; anything else
        that is unknown or wrong raises `RequestError`.
        """
        try:
            fields = dict(parse_json(source, JSON_BYTES) if isinstance(source, str) else source)
        except (ValueError, TypeError) as error:
            raise RequestError(f"This is not a request in JSON: {error}.") from None
        version = fields.pop("version", REQUEST_VERSION)
        newer = isinstance(version, int) and version > REQUEST_VERSION
        unknown = [*_unknown_kinds(fields)] if newer else []
        fields = cls.input_form(fields)
        unknown += [name for name in fields if name not in cls.model_fields]
        if unknown and newer:
            warnings.warn(
                f"This request was written by a newer stillmotion; left out, because unknown here: "
                f"{', '.join(map(str, unknown))}. Update stillmotion to use everything.",
                StillmotionWarning,
                stacklevel=2,
            )
            fields = {name: value for name, value in fields.items() if name not in unknown}
        return cls.parse(**fields)

    @classmethod
    def flags(cls) -> tuple[Flag, ...]:
        """Every field as a command line option, in order; the prompt comes first and has no flag."""
        fields = (flag_of(cls, name) for name in cls.model_fields if name != "conditions")
        return (*fields, *condition_flags())


def _condition_names() -> tuple[str, ...]:
    return ("conditions", "controls", *condition_kinds())


def _unknown_kinds(fields: dict[str, Any]) -> Iterator[str]:
    """Takes conditions of unknown kinds out of the fields; gives their names."""
    given = fields.get("conditions")
    if not isinstance(given, list):
        return
    for each in given:
        kind = each.get("kind") if isinstance(each, dict) else None
        if isinstance(kind, str) and kind not in condition_kinds():
            fields["conditions"] = [other for other in fields["conditions"] if other is not each]
            yield f"the condition {kind}"


if TYPE_CHECKING:

    class CompleteRequest(Request):
        """A Request that leaves nothing to the model: what `filled` gives."""

        frames: int
        width: int
        height: int
        num_inference_steps: int
        guidance_scale: float
        scheduler: str
        seed: int
        fps: float
        noise_alpha: float
else:
    CompleteRequest = Request

Request.__doc__ = f"{Request.__doc__}\n\n{arguments_help(Request)}"
