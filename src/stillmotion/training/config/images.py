"""Settings of runs that learn from images: style LoRA, DreamBooth, textual inversion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillmotion.training.config.shared import BATCH, MANY, SIDE, DenoiseConfig, InitialLora

if TYPE_CHECKING:
    from typing_extensions import Self

FULL_RATE = 5e-6
"""learning rate that trains a whole UNet without washing out what it knew"""


class ImageConfig(DenoiseConfig):
    """How images become samples, and defaults for short runs."""

    resolution: int | None = Field(
        None,
        ge=8,
        le=SIDE,
        description="images are resized to about so many pixels a side; default: as the base draws",
    )
    buckets: bool = Field(
        True, description="keep the shapes of images (sizes of about RESOLUTION^2 pixels); no: cut squares"
    )
    flip: bool = Field(False, description="show every second image as its mirror image")
    batch_size: int = Field(1, ge=1, le=BATCH, description="images per process and pass")
    max_train_steps: int = Field(1000, ge=1, le=MANY, description="optimizer steps of the whole run")
    learning_rate: float = Field(2e-4, gt=0, description="after the warm-up")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="running mean of the weights, which is then what is saved; 0 = none"
    )
    validation_steps: int = Field(250, ge=0, description="sample images every so many steps; 0 = never")
    checkpoint_steps: int = Field(250, ge=1, description="a checkpoint every so many steps")


class LowRankConfig(ImageConfig):
    """How large a LoRA is, and what it changes."""

    usual_rate: ClassVar[float] = 2e-4

    rank: int = Field(16, ge=1, le=SIDE, description="its size: 4 to 16 for a subject, 16 to 64 for a style")
    alpha: float | None = Field(
        None, gt=0, description="the LoRA acts at ALPHA / RANK; default: at 1, whatever its rank"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the LoRA's inputs left out in training")
    initial_lora: InitialLora = None
    conv: bool = Field(
        False, description="change the convolutions of the UNet too (LoCon): more of textures, a larger file"
    )
    train_text_encoder: bool = Field(
        False, description="train the text encoder too, so that words get new meanings"
    )

    @property
    def trains_whole_model(self) -> bool:
        """Whether the weights of the base themselves train."""
        return False


class LoraTrainConfig(LowRankConfig):
    """Training a style LoRA on images with captions."""

    images: Path = Field(
        description="folder of images with captions in .txt files beside them (else the folder's name is "
        "the caption, after kohya's number of repeats: '10_red cat'), or JSONL"
    )


class DreamBoothConfig(LowRankConfig):
    """Teaching the base one subject from a few images: by a LoRA or by the whole UNet."""

    base: str = Field(description="text-to-image model: a diffusers folder, a hub name or a single file")

    instance_images: Path = Field(description="folder with a few (3 to 5) images of the subject")
    instance_prompt: str = Field(
        min_length=1, description="a rare word and what it is, such as 'a photo of sks dog'"
    )
    class_prompt: str | None = Field(
        None,
        description="the same without the rare word ('a photo of dog'): the base keeps what it knew of it",
    )
    class_images: Path | None = Field(
        None,
        description="folder of images for CLASS_PROMPT; what is missing there the base draws first; "
        "default: OUTPUT/class-images",
    )
    num_class_images: int = Field(
        50, ge=1, le=BATCH, description="images of the class; the base draws them as it draws samples"
    )
    prior_weight: float = Field(1.0, gt=0, description="weight of the class in the loss")
    method: Literal["lora", "full"] = Field(
        "lora", description="lora: a small file beside the base; full: a whole model of its own"
    )
    learning_rate: float = Field(
        2e-4, gt=0, description=f"after the warm-up; for method full {FULL_RATE:g} if not given"
    )
    max_train_steps: int = Field(600, ge=1, le=MANY, description="optimizer steps of the whole run")
    text_dropout: float = Field(
        0.0, ge=0, le=1, description="part of the samples trained without text, for guidance"
    )

    @property
    def trains_whole_model(self) -> bool:
        """Whether the weights of the base themselves train."""
        return self.method == "full"

    @property
    def usual_rate(self) -> float:  # type: ignore[override]
        """Learning rate that trains such weights with AdamW."""
        return FULL_RATE if self.trains_whole_model else 2e-4

    @model_validator(mode="before")
    @classmethod
    def _rate_of_method(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("method") == "full":
            return {"learning_rate": FULL_RATE} | fields
        return fields

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.class_images is not None and self.class_prompt is None:
            raise ValueError(
                f"class_images is {str(self.class_images)!r}, but class_prompt is missing: say what these "
                "images show, such as 'a photo of dog'"
            )
        if self.initial_lora and self.trains_whole_model:
            raise ValueError("initial_lora needs method lora: method full trains the model itself")
        return self


class TextualInversionConfig(ImageConfig):
    """Teaching the text encoder a new word from a few images; nothing else of the model changes."""

    usual_rate: ClassVar[float] = 5e-3

    images: Path = Field(
        description="folder with a few (3 to 10) images of the subject or style; captions in .txt files "
        "count where they contain the token"
    )
    token: str = Field(min_length=1, description="the new word, such as '<my-dog>'; CLIP reads lower case")
    initializer_word: str = Field(min_length=1, description="a known word that comes near it, such as 'dog'")
    vectors: int = Field(1, ge=1, le=64, description="places of the prompt that the word takes")
    learnable: Literal["object", "style"] = Field(
        "object", description="which sentences it is trained in: 'a photo of a ...' or 'a painting by ...'"
    )
    templates: list[str] = Field(
        [], description="sentences of your own, with {} for the word; default: those of LEARNABLE"
    )
    learning_rate: float = Field(5e-3, gt=0, description="after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    text_dropout: float = Field(
        0.0, ge=0, le=1, description="part of the samples trained without text, for guidance"
    )

    @model_validator(mode="after")
    def _places_for_the_word(self) -> Self:
        bad = next((template for template in self.templates if "{}" not in template), None)
        if bad is not None:
            raise ValueError(
                f"the template {bad!r} has no {{}} where the word goes, as in 'a photo of a {{}}'"
            )
        if self.token.split() != [self.token]:
            raise ValueError(f"the token {self.token!r} has spaces: give one word, such as '<my-dog>'")
        return self
