"""Settings that all runs share, validated at birth. Every field is a key of the YAML file and a flag."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.errors import RequestError
from stillmotion.foreign import read_yaml
from stillmotion.request.aliases import TRAINING

if TYPE_CHECKING:
    from typing_extensions import Self

Config = TypeVar("Config", bound="TrainConfig")
SIDE, BATCH, MANY = 16_384, 65_536, 10**9
"""Upper bounds of sizes in pixels, of batches and of steps: above any use, and far below an overflow."""
Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
InitialLora = Annotated[
    str | None,
    Field(description="go on from this LoRA, of the same rank; default: from one that changes nothing"),
]


class TrainConfig(BaseModel):
    """What every target shares: where, how long, how fast, how precisely."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    usual_rate: ClassVar[float] = 1e-4
    """learning rate that trains such weights with AdamW; far from it the run is warned"""

    output: Path = Field(description="folder of the run; the same command goes on with a run that is there")
    base: str = Field(
        description="text-to-image model: a diffusers folder, a hub name or a single file; it stays frozen"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice of the run")

    max_train_steps: int = Field(
        10_000, ge=1, le=MANY, description="optimizer steps of the whole run; the cosine ends here"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="stop cleanly after this many minutes; go on by the same command"
    )
    batch_size: int = Field(1, ge=1, le=BATCH, description="clips per process and pass")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=MANY, description="passes whose gradients are averaged in one step"
    )

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon learns more in few steps, but needs torch 2.9"
    )
    learning_rate: float = Field(1e-4, gt=0, description="after the warm-up")
    lr_schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up")
    lr_warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from zero")
    lr_end: float = Field(0.05, ge=0, le=1, description="the cosine ends at this part of the learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="of AdamW")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="of AdamW")
    max_grad_norm: float = Field(
        1.0, ge=0, description="gradients longer than this are shortened to it; 0 = never"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="running mean of the weights, which is what is saved; 0 = none"
    )

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the computation; the trained weights and their optimizer are always fp32"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them (less memory)"
    )
    device: str | None = Field(None, description="cpu, cuda, mps...; default: what accelerate finds")

    checkpoint_steps: int = Field(500, ge=1, description="a checkpoint every so many steps")
    checkpoint_minutes: float = Field(10, gt=0, description="and whenever so many minutes have passed")
    keep_checkpoints: int = Field(3, ge=1, description="older ones are removed")
    log_steps: int | None = Field(
        None, ge=1, description="a line of the log every so many steps; default: every few seconds"
    )
    tensorboard: bool = Field(False, description="log to TensorBoard too (pip install stillmotion[train])")

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, fields: Any) -> Any:
        return TRAINING.updated(fields) if isinstance(fields, dict) else fields

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """`rank: yes` in YAML is no rank of 1."""
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("a yes or no, but a value is wanted")
        return value

    @classmethod
    def parse(cls: type[Config], **fields: Any) -> Config:
        """A config from plain values; RequestError in one sentence per wrong field."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise RequestError(" ".join(_sentence(cls, detail) for detail in error.errors())) from None


class DenoiseConfig(TrainConfig):
    """What every target shares that teaches a diffusion model: size, text, noise, sample images."""

    cache: Path | None = Field(
        None, description="folder for latents; may be shared by runs; default: OUTPUT/latents"
    )
    resolution: int | None = Field(
        None,
        ge=8,
        le=SIDE,
        description="training images are resized to about so many pixels; default: as the base draws",
    )
    text_dropout: float = Field(
        0.1, ge=0, le=1, description="part of the samples trained without text, for guidance"
    )
    beta_schedule: Betas | None = Field(None, description="noise schedule; default: as the base's scheduler")
    beta_start: float | None = Field(None, gt=0, lt=1, description="first beta; default: as the base")
    beta_end: float | None = Field(None, gt=0, lt=1, description="last beta; default: as the base")
    zero_terminal_snr: bool | None = Field(
        None, description="last step is pure noise; default: as the base's scheduler"
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what the base predicts; default: as its scheduler says"
    )
    snr_gamma: float | None = Field(
        None, gt=0, description="min-SNR weighting of the loss (5 is usual); default: none"
    )
    noise_offset: float = Field(
        0.0, ge=0, description="adds so much of one value per frame and channel to the noise"
    )
    min_timestep: int = Field(
        0,
        ge=0,
        lt=1000,
        description="least noisy timestep that is trained: coarse things are learnt above 400",
    )
    max_timestep: int | None = Field(
        None, ge=1, le=1000, description="end of the timesteps that are trained; default: of the schedule"
    )

    validation_steps: int = Field(1000, ge=0, description="sample images every so many steps; 0 = never")
    validation_prompts: list[str] = Field(
        [], description="prompts of the samples; default: captions of the data"
    )
    validation_inference_steps: int = Field(25, ge=1, le=1000, description="denoising steps of the samples")
    validation_guidance: float = Field(7.5, ge=0, description="guidance scale of the samples")

    @property
    def side(self) -> int:
        """The resolution in pixels; RequestError where nothing is said, which `train` fills in."""
        if self.resolution is None:
            raise RequestError("resolution is missing: say it, or start the run with `train`.")
        return self.resolution

    @property
    def schedule(self) -> NoiseSchedule:
        """What the config says of the noise that is trained on."""
        return NoiseSchedule(
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            rescale_betas_zero_snr=self.zero_terminal_snr,
            prediction_type=self.prediction_type,
        )

    @model_validator(mode="after")
    def _possible_noise(self) -> Self:
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "zero_terminal_snr needs prediction_type v_prediction (epsilon says nothing at pure noise)"
            )
        if self.max_timestep is not None and self.min_timestep >= self.max_timestep:
            raise ValueError(
                f"min_timestep is {self.min_timestep}, but must be below max_timestep ({self.max_timestep})"
            )
        return self


def plain_fields(config: TrainConfig) -> dict[str, Any]:
    """All settings as JSON has them; paths are absolute, so that they mean the same from any folder."""
    fields = config.model_dump(mode="json")
    for name, value in fields.items():
        given = getattr(config, name)
        named = name in ("base", "motion", "initial_lora") and value and Path(value).expanduser().exists()
        if isinstance(given, Path) or named:
            fields[name] = str(Path(value).expanduser().absolute())
    return fields


def as_yaml(config: TrainConfig) -> str:
    """All settings of a run as a file that `load_config` reads."""
    note = "# The settings of this run: `stillmotion train ... --config THIS_FILE` goes on with it.\n"
    return note + yaml.safe_dump(plain_fields(config), sort_keys=False, allow_unicode=True)


def load_config(kind: type[Config], path: str | Path | None = None, **overrides: Any) -> Config:
    """A config from a YAML file and values that win over it; paths are relative to the current folder."""
    fields: dict[str, Any] = {}
    if path is not None:
        try:
            fields = read_yaml(path) or {}
        except OSError as error:
            raise RequestError(
                f"{path} cannot be read: {error.strerror}; --config takes a YAML file."
            ) from None
        except ValueError as error:
            raise RequestError(f"{path} cannot be used: {error}; --config takes a YAML file.") from None
        if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
            raise RequestError(
                f"{path} holds {type(fields).__name__}; expected lines such as 'learning_rate: 0.0001'."
            )
    try:
        return kind.parse(**(TRAINING.updated(fields) | TRAINING.updated(overrides)))
    except RequestError as error:
        raise RequestError(f"{path}: {error}" if path is not None else str(error)) from None


def _sentence(kind: type[BaseModel], detail: Any) -> str:
    """One pydantic error in words; YAML reads 1e-4 as text, but pydantic makes a number of it."""
    name = ".".join(str(part) for part in detail["loc"]) or "the config"
    if detail["type"] == "missing":
        return f"{name} is missing: {kind.model_fields[name].description}."
    if detail["type"] == "extra_forbidden":
        near = get_close_matches(name, kind.model_fields, n=1)
        return f"{name} is not a field of this training" + (f"; did you mean {near[0]}?" if near else ".")
    if not detail["loc"]:
        return detail["msg"].removeprefix("Value error, ") + "."
    return f"{name} is {detail['input']!r}, but: {detail['msg'][0].lower()}{detail['msg'][1:]}."
