"""The sections of a Request: `Prompts`, `Output`, `Sampling` and `Models`.

A field stands in one section, with its help, flags, rule and example; all else is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from stillmotion.errors import RequestError
from stillmotion.request import aliases
from stillmotion.request.fields import FrozenDict, extra_of, field, frozen
from stillmotion.request.layer_weights import FORM, LARGEST, LayerWeights
from stillmotion.request.messages import sentence

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

DTYPES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
GroupNormMode = Literal["family", "pooled"]
LoraAlpha = Literal["use", "ignore"]
SingleFrameMotion = Literal["skip", "run"]

WEIGHED = f"each is a file and its weight ({FORM}), from -{LARGEST} to {LARGEST}"
PLACE = "it must be a name or path"
SIDE: dict[str, Any] = {"ge": 8, "le": 16384, "multiple_of": 8}
AMOUNT: dict[str, Any] = {"ge": 0, "le": 1e6, "allow_inf_nan": False}
TEXT: dict[str, Any] = {"max_length": 100_000}
"""Rules that several fields share. Upper bounds lie where no use is known; they keep sums finite."""


def _json_weight(weight: Any) -> float | dict[str, float]:
    """A weight as JSON keeps it; what is none is a ValueError, for pydantic."""
    try:
        return LayerWeights.of(weight).spec
    except RequestError as error:
        raise ValueError(str(error)) from None


def _hashable(weight: float | dict[str, float]) -> float | dict[str, float]:
    return frozen(weight) if isinstance(weight, dict) else weight


Weight = Annotated[float | dict[str, float], BeforeValidator(_json_weight), AfterValidator(_hashable)]
Weights = Annotated[dict[str, Weight], AfterValidator(frozen)]
Words = Annotated[dict[str, str], AfterValidator(frozen)]


class Section(BaseModel):
    """Some fields of a Request. Immutable; wrong values raise `RequestError` with one sentence for each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, **fields: Any) -> Self:
        """The same as the class called, for fields whose names come from elsewhere. Raises `RequestError`."""
        return cls.model_validate(fields)

    @classmethod
    def input_form(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields as they may be given -> by their present names."""
        return aliases.REQUEST.updated(fields)

    def given(self) -> dict[str, Any]:
        """The fields that were set, by name."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set
        }

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, fields: Any, handler: Any) -> Any:
        try:
            return handler(cls.input_form(fields) if isinstance(fields, Mapping) else fields)
        except ValidationError as error:
            raise RequestError(" ".join(sentence(cls, problem) for problem in error.errors())) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would read True as 1 frame
            raise ValueError("a yes or no")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _one_of(cls, value: Any, info: ValidationInfo) -> Any:
        """A choice as people write it: "Euler A" is euler_a."""
        choices = extra_of(cls, str(info.field_name)).get("choices")
        if choices is None or not isinstance(value, str):
            return value
        value = value.strip().lower().replace("-", "_").replace(" ", "_").removeprefix("torch.")
        value = DTYPES.get(value, value) if info.field_name == "dtype" else value
        if value not in choices:
            raise ValueError("not a choice")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _pairs(cls, value: Any, info: ValidationInfo) -> Any:
        """FILE and FILE=WEIGHT (or WORD), one or several, as the command line gives them."""
        if info.field_name not in REPEATED:
            return value
        if value is None or isinstance(value, Mapping):
            return value or {}
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ValueError("neither names with values nor a list of names")
        pairs = [item.rpartition("=") for item in items]
        unsaid: Any = 1.0 if info.field_name in LORAS else ""
        return {name or weight: weight if name else unsaid for name, _, weight in pairs}


class Prompts(Section):
    """What is said, and how it is read."""

    prompt: str = field(
        ..., "what should be seen", "it must be text in UTF-8", '"a rocket, 3d render style"', **TEXT
    )
    negative_prompt: str = field(
        "", "what should not be seen", "it must be text in UTF-8", '"blurry"', "--negative-prompt", **TEXT
    )
    clip_skip: int | None = field(
        None,
        "how many of the text encoder's last layers to leave out (1 here is 2 in the WebUI)",
        "it must be a whole number of at least 1",
        "1",
        "--clip-skip",
        ge=1,
        le=100,
    )


class Output(Section):
    """Length, size and rate of the clip."""

    frames: int | None = field(
        None,
        "length of the clip in frames",
        "a clip needs at least 1 whole frame",
        "16",
        "--frames",
        ge=1,
        le=10**6,
    )
    width: int | None = field(
        None, "width in pixels, a multiple of 8", "sizes are multiples of 8", "512", "--width", **SIDE
    )
    height: int | None = field(
        None, "height in pixels, a multiple of 8", "sizes are multiples of 8", "512", "--height", **SIDE
    )
    fps: float | None = field(
        None,
        "frames per second of the clip",
        "it must be a number between 0.1 and 240",
        "8",
        "--fps",
        ge=0.1,
        le=240,
        allow_inf_nan=False,
    )


class Sampling(Section):
    """How the clip is drawn."""

    num_inference_steps: int | None = field(
        None,
        "denoising steps: more is slower and often better",
        "it takes between 1 and 1000 steps",
        "25",
        "--num-inference-steps",
        "--steps",
        ge=1,
        le=1000,
    )
    guidance_scale: float | None = field(
        None,
        "how strictly to follow the prompt; 1 switches guidance off and is twice as fast",
        "it must be a number of at least 0",
        "7.5",
        "--guidance-scale",
        "--guidance",
        **AMOUNT,
    )
    scheduler: str | None = field(
        None, "sampler", "it must be one of", "ddim", "--scheduler", choices=SCHEDULERS
    )
    seed: int | None = field(
        None,
        "the same seed gives the same clip; without one a random seed is drawn and recorded",
        "a seed is a whole number of at least 0",
        "7",
        "--seed",
        ge=0,
        lt=2**64,
    )
    motion_scale: float = field(
        1.0,
        "scales the motion: 0 is a still, above 1 exaggerates",
        "it must be a number of at least 0",
        "1",
        "--motion-scale",
        **AMOUNT,
    )
    noise_alpha: float | None = field(
        None,
        "how much of a frame's noise goes on into the next: 0 nothing, 2 most of it; more is calmer",
        "it must be a number of at least 0",
        "1.5",
        "--noise-alpha",
        **AMOUNT,
    )
    lora_alpha: LoraAlpha = field(
        "use",
        "whether LoRAs are scaled by their alpha as kohya defines it, or alpha is ignored, as in the "
        "original AnimateDiff code",
        "it must be one of",
        "use",
        "--lora-alpha",
        choices=get_args(LoraAlpha),
    )
    group_norm: GroupNormMode = field(
        "family",
        "statistics of the group norms: as the motion was trained (those of its family), or pooled over the "
        "frames in every motion module, as diffusers computes them",
        "it must be one of",
        "family",
        "--group-norm",
        choices=get_args(GroupNormMode),
    )
    single_frame_motion: SingleFrameMotion = field(
        "skip",
        "whether motion acts on one frame alone: not, so that it is the image of the base, or as in "
        "AnimateDiff and diffusers",
        "it must be one of",
        "run",
        "--single-frame-motion",
        choices=get_args(SingleFrameMotion),
    )


class ModelFields(Section):
    """What is loaded before a clip is drawn."""

    motion: str | None = field(
        None, "motion module: a file, folder or hub name", PLACE, "v3_sd15_mm.ckpt", "--motion"
    )
    base: str | None = field(
        None, "text-to-image model: a file, folder or hub name", PLACE, "model/", "--base"
    )
    vae: str | None = field(
        None, "VAE to use instead of the base's: a file, folder or hub name", PLACE, "vae/", "--vae"
    )
    embeddings: Words = field(
        FrozenDict(),
        "textual inversion to load, as FILE or FILE=WORD; may be given several times; WORD is what it is "
        "called in the prompt, by default the word in the file or the file's name",
        "each is a file and its word",
        "easynegative.safetensors",
        "--embedding",
        repeated=True,
    )
    loras: Weights = field(
        FrozenDict(),
        "LoRA file to apply, as FILE or FILE=WEIGHT; may be given several times; WEIGHT is a number, or by "
        "part (unet:0.8,text:0.5), block (down:0.5,up:1) or frame (0:0,15:1)",
        WEIGHED,
        "style.safetensors=0.8",
        "--lora",
        repeated=True,
    )
    motion_loras: Weights = field(
        FrozenDict(),
        "motion LoRA to apply to the motion module, as FILE or FILE=WEIGHT; may be given several times",
        WEIGHED,
        "v2_lora_PanLeft.ckpt=0.8",
        "--motion-lora",
        repeated=True,
    )
    dtype: str | None = field(
        None,
        "precision of the computation; without it whatever this machine does best",
        "it must be one of",
        "float32",
        "--dtype",
        choices=tuple(dict.fromkeys(DTYPES.values())),
    )


LORAS = ("loras", "motion_loras")
"""Fields that map files to weights."""

REPEATED = (*LORAS, "embeddings")
"""Fields that may be given several times on the command line."""


class Models(ModelFields):
    """What an Animator is made of: hashable, so a server or cluster keeps one Animator for each of them."""

    condition_models: tuple[str, ...] = ()
    """Weights of the request's conditions, which the Animator loads when they are first used."""

    def given(self) -> dict[str, Any]:
        """The fields that were set, by name; what belongs to conditions is not among them."""
        return {name: value for name, value in super().given().items() if name != "condition_models"}

    def __getitem__(self, name: str) -> Any:
        if name not in type(self).model_fields:
            raise KeyError(name)
        return getattr(self, name)

    @property
    def load_arguments(self) -> dict[str, Any]:
        """As `Animator.load(**models.load_arguments)` takes them."""
        return {name: getattr(self, name) for name in ModelFields.model_fields}
