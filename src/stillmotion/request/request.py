"""Request: one validated description of a clip, of which flags, JSON, forms and the tags in files are made.

A field that is None means "the default of the model in use", which `Request.filled` puts in.
Every field carries its own help, flag names, rule and example, so a new option is one field and nothing else.
Whatever is wrong with a field, one sentence explains it: what was given, the rule, an example that works.
"""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stillmotion.errors import RequestError, StillmotionWarning
from stillmotion.foreign import parse_json
from stillmotion.request import aliases
from stillmotion.request.layer_weights import FORM, LARGEST, LayerWeights
from stillmotion.request.messages import extra_of, sentence

REQUEST_VERSION = 7
"""Stands in the JSON; goes up by one with every new field: older installations then know what they miss."""

SCHEDULERS = (
    "ddim",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_a",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "dpmpp_2s",
    "dpmpp_sde",
    "euler",
    "euler_a",
    "heun",
    "lcm",
    "lms",
    "pndm",
    "tcd",
    "unipc",
)
"""Names of the samplers; `stillmotion.diffusion.schedulers` knows what stands behind them."""

JSON_BYTES = 2**20
"""A longer text is no request."""

DTYPES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
GroupNormMode = Literal["family", "pooled"]
LoraAlpha = Literal["use", "ignore"]

WEIGHED = f"each is a file and its weight ({FORM}), from -{LARGEST} to {LARGEST}"
PLACE = "it must be a name or path"
SIDE: dict[str, Any] = {"ge": 8, "le": 16384, "multiple_of": 8}
AMOUNT: dict[str, Any] = {"ge": 0, "le": 1e6, "allow_inf_nan": False}
TEXT: dict[str, Any] = {"max_length": 100_000}
"""Rules that several fields share. Upper bounds lie where no use is known; they keep sums finite."""

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

LORAS = ("loras", "motion_loras")
"""Fields that map files to weights."""

REPEATED = (*LORAS, "embeddings")
"""Fields that may be given several times on the command line."""


def _json_weight(weight: Any) -> float | dict[str, float]:
    """A weight as JSON keeps it; what is none is a ValueError, for pydantic."""
    try:
        return LayerWeights.of(weight).spec
    except RequestError as error:
        raise ValueError(str(error)) from None


Weight = Annotated[float | dict[str, float], BeforeValidator(_json_weight)]


def _field(
    default: Any,
    help: str,
    rule: str,
    example: str,
    *flags: str,
    choices: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """A field with its limits; `rule` and `example` complete "frames is 0, but RULE: give FLAG EXAMPLE"."""
    extra = {"flags": list(flags), "rule": rule, "example": example}
    if choices:
        extra["choices"] = list(choices)
    return Field(default, description=help, json_schema_extra=extra, **limits)


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


class Request(BaseModel):
    """What to animate and how. Immutable; wrong values raise `RequestError` with one sentence for each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = _field(
        ..., "what should be seen", "it must be text in UTF-8", '"a rocket, 3d render style"', **TEXT
    )
    negative_prompt: str = _field(
        "", "what should not be seen", "it must be text in UTF-8", '"blurry"', "--negative-prompt", **TEXT
    )
    frames: int | None = _field(
        None,
        "length of the clip in frames",
        "a clip needs at least 1 whole frame",
        "16",
        "--frames",
        ge=1,
        le=10**6,
    )
    width: int | None = _field(
        None, "width in pixels, a multiple of 8", "sizes are multiples of 8", "512", "--width", **SIDE
    )
    height: int | None = _field(
        None, "height in pixels, a multiple of 8", "sizes are multiples of 8", "512", "--height", **SIDE
    )
    num_inference_steps: int | None = _field(
        None,
        "denoising steps: more is slower and often better",
        "it takes between 1 and 1000 steps",
        "25",
        "--num-inference-steps",
        "--steps",
        ge=1,
        le=1000,
    )
    guidance_scale: float | None = _field(
        None,
        "how strictly to follow the prompt; 1 switches guidance off and is twice as fast",
        "it must be a number of at least 0",
        "7.5",
        "--guidance-scale",
        "--guidance",
        **AMOUNT,
    )
    scheduler: str | None = _field(
        None, "sampler", "it must be one of", "ddim", "--scheduler", choices=SCHEDULERS
    )
    seed: int | None = _field(
        None,
        "the same seed gives the same clip; without one a random seed is drawn and recorded",
        "a seed is a whole number of at least 0",
        "7",
        "--seed",
        ge=0,
        lt=2**64,
    )
    fps: float | None = _field(
        None,
        "frames per second of the clip",
        "it must be a number between 0.1 and 240",
        "8",
        "--fps",
        ge=0.1,
        le=240,
        allow_inf_nan=False,
    )
    motion_scale: float = _field(
        1.0,
        "scales the motion: 0 is a still, above 1 exaggerates",
        "it must be a number of at least 0",
        "1",
        "--motion-scale",
        **AMOUNT,
    )
    noise_alpha: float | None = _field(
        None,
        "how much of a frame's noise goes on into the next: 0 nothing, 2 most of it; more is calmer",
        "it must be a number of at least 0",
        "1.5",
        "--noise-alpha",
        **AMOUNT,
    )
    clip_skip: int | None = _field(
        None,
        "how many of the text encoder's last layers to leave out (1 here is 2 in the WebUI)",
        "it must be a whole number of at least 1",
        "1",
        "--clip-skip",
        ge=1,
        le=100,
    )
    motion: str | None = _field(
        None, "motion module: a file, folder or hub name", PLACE, "v3_sd15_mm.ckpt", "--motion"
    )
    base: str | None = _field(
        None, "text-to-image model: a file, folder or hub name", PLACE, "model/", "--base"
    )
    vae: str | None = _field(
        None, "VAE to use instead of the base's: a file, folder or hub name", PLACE, "vae/", "--vae"
    )
    embeddings: dict[str, str] = _field(
        {},
        "textual inversion to load, as FILE or FILE=WORD; may be given several times; WORD is what it is "
        "called in the prompt, by default the word in the file or the file's name",
        "each is a file and its word",
        "easynegative.safetensors",
        "--embedding",
    )
    loras: dict[str, Weight] = _field(
        {},
        "LoRA file to apply, as FILE or FILE=WEIGHT; may be given several times; WEIGHT is a number, or by "
        "part (unet:0.8,text:0.5), block (down:0.5,up:1) or frame (0:0,15:1)",
        WEIGHED,
        "style.safetensors=0.8",
        "--lora",
    )
    motion_loras: dict[str, Weight] = _field(
        {},
        "motion LoRA to apply to the motion module, as FILE or FILE=WEIGHT; may be given several times",
        WEIGHED,
        "v2_lora_PanLeft.ckpt=0.8",
        "--motion-lora",
    )
    lora_alpha: LoraAlpha = _field(
        "use",
        "whether LoRAs are scaled by their alpha as kohya defines it, or alpha is ignored, as in the "
        "original "
        "AnimateDiff code",
        "it must be one of",
        "use",
        "--lora-alpha",
        choices=get_args(LoraAlpha),
    )
    dtype: str | None = _field(
        None,
        "precision of the computation; without it whatever this machine does best",
        "it must be one of",
        "float32",
        "--dtype",
        choices=tuple(dict.fromkeys(DTYPES.values())),
    )
    group_norm: GroupNormMode = _field(
        "family",
        "statistics of the group norms: as the motion was trained (those of its family), or pooled over the "
        "frames in every motion module, as diffusers computes them",
        "it must be one of",
        "family",
        "--group-norm",
        choices=get_args(GroupNormMode),
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, fields: Any, handler: Any) -> Any:
        try:
            return handler(aliases.REQUEST.updated(fields) if isinstance(fields, Mapping) else fields)
        except ValidationError as error:
            raise RequestError(" ".join(sentence(cls, problem) for problem in error.errors())) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would read True as 1 frame
            raise ValueError("a yes or no")
        return value

    @field_validator("scheduler", "dtype", "group_norm", "lora_alpha", mode="before")
    @classmethod
    def _one_of(cls, value: Any, info: Any) -> Any:
        if value is None or not isinstance(value, str):
            return value
        value = value.strip().lower().replace("-", "_").replace(" ", "_").removeprefix("torch.")
        value = DTYPES.get(value, value) if info.field_name == "dtype" else value
        if value not in cls.model_fields[info.field_name].json_schema_extra["choices"]:
            raise ValueError("not a choice")
        return value

    @field_validator(*REPEATED, mode="before")
    @classmethod
    def _pairs(cls, value: Any, info: Any) -> Any:
        """FILE and FILE=WEIGHT (or WORD), one or several, as the command line gives them."""
        if value is None or isinstance(value, Mapping):
            return value or {}
        pairs = [item.rpartition("=") for item in ([value] if isinstance(value, str) else value)]
        unsaid = 1.0 if info.field_name in LORAS else ""
        return {name or weight: weight if name else unsaid for name, _, weight in pairs}

    @classmethod
    def parse(cls, **fields: Any) -> Request:
        """`Request(**fields)`, for fields whose names come from elsewhere. Raises `RequestError`."""
        return cls.model_validate(fields)

    def replace(self, **fields: Any) -> Request:
        """The same request with other values, validated again."""
        return self.parse(**{**self.model_dump(exclude_unset=True), **aliases.REQUEST.updated(fields)})

    def filled(self, defaults: Mapping[str, Any]) -> Request:
        """The complete request: what was not given comes from the model's `defaults`, and a seed is drawn.

        The result says everything needed to make the same clip again. Raises `RequestError` if the model has
        no default for something that was left open.
        """
        given = {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}
        fields = {**self.model_dump(), **defaults, **given}
        missing = [name for name in FILLED_BY_MODEL if fields[name] is None]
        if missing:
            flags = " and ".join(f"{extra_of(type(self), name)['flags'][0]}" for name in missing)
            raise RequestError(f"The model has no default for {' and '.join(missing)}: give {flags}.")
        if fields["seed"] is None:
            fields["seed"] = secrets.randbelow(2**32)
        return self.parse(**fields)

    def to_json(self) -> str:
        """One line of ASCII; fields left to the model are left out. `Request.from_json` reads it back."""
        return json.dumps(
            {"version": REQUEST_VERSION, **self.model_dump(exclude_unset=True, exclude_none=True)}
        )

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> Request:
        """The request of a JSON text or object.

        Fields that only a newer stillmotion knows are left out with a warning that names them; anything else
        that is unknown or wrong raises `RequestError`.
        """
        try:
            fields = dict(parse_json(source, JSON_BYTES) if isinstance(source, str) else source)
        except (ValueError, TypeError) as error:
            raise RequestError(f"This is not a request in JSON: {error}.") from None
        version = fields.pop("version", REQUEST_VERSION)
        fields = aliases.REQUEST.updated(fields)
        unknown = [name for name in fields if name not in cls.model_fields]
        if unknown and isinstance(version, int) and version > REQUEST_VERSION:
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
        return tuple(_flag(cls, name) for name in cls.model_fields)


def _flag(cls: type[Request], name: str) -> Flag:
    field, extra = cls.model_fields[name], extra_of(cls, name)
    kinds = {field.annotation, *get_args(field.annotation)}
    repeated = name in REPEATED
    kind = next((kind for kind in (int, float) if kind in kinds and not repeated), str)
    default = None if field.is_required() or repeated else field.default
    choices = tuple(extra.get("choices", ()))
    return Flag(name, tuple(extra["flags"]), kind, field.description, default, choices, repeated)
