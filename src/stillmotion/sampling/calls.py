"""How `Animator.animate` may be called: one prompt or several, with the words of diffusers' pipelines too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from stillmotion.errors import RequestError
from stillmotion.request import Request
from stillmotion.request.typed import RequestFields

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
"""diffusers' `callback_on_step_end`: (pipeline, step, timestep, tensors) -> tensors to go on with."""


class CallFields(RequestFields, total=False):
    """What `Animator.animate` takes by name: the fields of a Request, and these."""

    progress: bool | None
    num_frames: int | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    callback_on_step_end: StepCallback | None


ONE_FOR_EACH = ("seed", "negative_prompt", "generator")
"""What may be a list, one for each of several prompts."""


def requests_of(prompts: Sequence[str | Request], fields: Mapping[str, Any]) -> list[Request]:
    """A request for each prompt; `num_frames` means frames, and `generator` stands for a seed.

    What is in `ONE_FOR_EACH` may be a list. RequestError if something is wrong or given twice.
    """
    given = dict(fields)
    if given.get("num_frames") is not None:
        _not_twice(given, "num_frames", "frames")
        given["frames"] = given["num_frames"]
    given.pop("num_frames", None)
    if given.get("generator") is not None:
        _not_twice(given, "generator", "seed")
    else:
        given.pop("generator", None)
    return [_request(prompt, _of_one(given, number, len(prompts))) for number, prompt in enumerate(prompts)]


def _not_twice(given: Mapping[str, Any], theirs: str, ours: str) -> None:
    if given.get(ours) is not None:
        raise RequestError(f"{theirs} and {ours} mean the same here: give one of them.")


def _of_one(given: Mapping[str, Any], number: int, count: int) -> dict[str, Any]:
    fields = dict(given)
    for name in ONE_FOR_EACH:
        value = fields.get(name)
        if isinstance(value, (list, tuple)):
            if len(value) != count:
                raise RequestError(f"{name} is a list of {len(value)}, but there are {count} prompts.")
            fields[name] = value[number]
    return fields


def _request(prompt: str | Request, fields: dict[str, Any]) -> Request:
    generator = fields.pop("generator", None)
    if generator is not None:
        fields["seed"] = seed_of(generator)
    return prompt.replace(**fields) if isinstance(prompt, Request) else Request(prompt=prompt, **fields)


def seed_of(generator: torch.Generator) -> int:
    """The seed of a fresh generator, which is used up by it; of one in use, the next number that it draws.

    `torch.Generator().manual_seed(7)` means seed=7, and a second clip of the same generator is another.
    """
    if not isinstance(generator, torch.Generator):
        raise RequestError(
            f"generator is a {type(generator).__name__}, but must be a torch.Generator; a number is `seed=7`."
        )
    first = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(first)
    unused = torch.equal(fresh.get_state(), generator.get_state())
    drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return first if unused else int(drawn)
