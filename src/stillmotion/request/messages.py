"""What is wrong with a field of a request, in one sentence: what was given, the rule, a working example."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from stillmotion.request.fields import extra_of

OTHER_NAMES = {
    "steps": "num_inference_steps",
    "sampler": "scheduler",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "num_frames": "frames",
    "length": "frames",
    "video_length": "frames",
    "n_prompt": "negative_prompt",
    "negative": "negative_prompt",
    "strength": "motion_scale",
    "lora": "loras",
    "embedding": "embeddings",
    "textual_inversion": "embeddings",
    "motion_lora": "motion_loras",
    "motion_module": "motion",
    "motion_adapter": "motion",
    "model": "base",
    "generator": "seed",
}
"""What other programs call our fields; used for hints only, never accepted silently."""


def sentence(cls: type[BaseModel], problem: Mapping[str, Any], of: str = "") -> str:
    """A pydantic error in words for the user.

    Args:
        cls: the class with the fields.
        problem: one of pydantic's `errors()`.
        of: " of ..." where the field belongs to a part of a request.
    """
    if not problem["loc"]:
        return f"A request is made of named fields such as prompt, not of {shown(problem['input'])}."
    name, value = problem["loc"][0], problem["input"]
    if problem["type"] == "extra_forbidden":
        return unknown_field(cls, str(name), of.removeprefix(" of ") or "A request")
    extra = extra_of(cls, name)
    example = str(extra["example"])
    if problem["type"] == "missing":
        return f"{name}{of} is missing: give {example}."
    if problem["type"] == "multiple_of" and abs(int(value)) < 10**6:
        example = str(max(8, round(int(value) / 8) * 8))
    rule = _upper_bound(problem) or extra["rule"]
    if choices := extra.get("choices"):
        rule = f"{rule} {', '.join(choices)}"
        example = (get_close_matches(str(value).lower(), choices, 1, 0.4) or [example])[0]
    setting = "=".join([*(extra["flags"][:1] or [name]), example])
    given = setting if of else _argument(name, example, extra)
    return f"{name}{of} is {shown(value)}, but {rule}: give {given}."


def _argument(name: str, example: str, extra: Mapping[str, Any]) -> str:
    """`name=example` in Python; the command line writes its own flags for what stands so in backticks."""
    if extra.get("repeated"):
        file, _, value = example.partition("=")
        text = repr({file: float(value) if value else ""})
    else:
        text = example if example[:1] in '0123456789"' else repr(example)
    return f"`{name}={text}`"


def _upper_bound(problem: Mapping[str, Any]) -> str | None:
    """The rule that a value broke which is too large or too long; None if it is not."""
    limits = problem.get("ctx", {})
    if problem["type"] == "less_than_equal":
        return f"it may be at most {limits['le']:.0f}"
    if problem["type"] == "less_than":
        return f"it must be below {limits['lt']}"
    if problem["type"] == "string_too_long":
        return f"it may have at most {limits['max_length']:,} characters"
    return None


def unknown_field(cls: type[BaseModel], name: str, what: str = "A request") -> str:
    """The sentence for a field that is none, with the one that may be meant."""
    known = list(cls.model_fields)
    meant = OTHER_NAMES.get(name) or next(iter(get_close_matches(name, known, 1)), None)
    hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}."
    return f"{what} has no field {name}: {hint}"


def shown(value: Any) -> str:
    """A value as it was typed; in quotes only where it would vanish in the sentence."""
    try:
        text = value if isinstance(value, str) and value and not any(map(str.isspace, value)) else repr(value)
    except ValueError:  # Python prints no whole numbers of more than 4300 digits
        return "a number too long to be shown"
    return text if len(text) <= 60 else text[:57] + "..."
