"""Training: one loop over a target, which the kind of the config chooses. `train(config)` is the entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from stillmotion.training.config import (
    DenoiseConfig,
    DomainAdapterConfig,
    MotionLoraConfig,
    MotionTrainConfig,
    TrainConfig,
    load_config,
)
from stillmotion.training.config.images import DreamBoothConfig, LoraTrainConfig, TextualInversionConfig

if TYPE_CHECKING:
    from stillmotion.training.engine.logger import Step
    from stillmotion.training.engine.loop import Outcome

__all__ = ["KINDS", "MotionTrainConfig", "TrainConfig", "load_config", "train", "train_motion"]


@dataclass(frozen=True)
class Kind:
    """One thing that can be trained: its config, its target ("module:Class" in targets/), its help."""

    config: type[TrainConfig]
    target: str
    help: str


KINDS = {
    "motion": Kind(
        MotionTrainConfig,
        "motion:MotionTarget",
        """Train a motion module on clips with captions.

        The text-to-image model stays frozen. The weights end in OUTPUT/motion, which `stillmotion animate
        --motion` and diffusers' MotionAdapter load. Kill it whenever you like: the same command goes on where
        it was.

        With --motion FILE it goes on from weights you have, to bring them to videos of your kind: they keep
        their noise schedule, norms and positions, and a --learning-rate of 1e-5 to 1e-4 suits them. With
        --domain-adapter FILE the looks of the videos stay out of the motion (see train domain-adapter).
        """,
    ),
    "lora": Kind(
        LoraTrainConfig,
        "lora:LoraTarget",
        """Train a style LoRA on images with captions: a small file that changes how the base draws.

        \b
        stillmotion train lora --base emoji \\
            --images my-images/ --output runs/style

        The base stays as it is. OUTPUT/lora.safetensors is what you take away: `stillmotion animate --lora`,
        diffusers' load_lora_weights and other programs read it. Captions stand in .txt files beside the
        images; without them the folder's name is the caption. Kill it whenever you like: the same command
        goes on where it was. Step by step: docs/training-images.md
        """,
    ),
    "dreambooth": Kind(
        DreamBoothConfig,
        "dreambooth:DreamBoothTarget",
        """Teach the base one subject from 3 to 5 images, under a rare word.

        \b
        stillmotion train dreambooth --base emoji \\
            --instance-images my-dog/ --instance-prompt "a photo of sks dog" \\
            --class-prompt "a photo of dog" --output runs/dog

        Then "sks dog" in a prompt is your dog. With --class-prompt the base first draws images of the
        class, so that it keeps what it knew of it. It makes a LoRA (OUTPUT/lora.safetensors) or, with
        --method full, a whole model (OUTPUT/model, OUTPUT/model.safetensors). The same command goes on where
        it was.
        Step by step: docs/training-images.md
        """,
    ),
    "textual-inversion": Kind(
        TextualInversionConfig,
        "textual_inversion:TextualInversionTarget",
        """Teach the text encoder a new word from a few images: a file of a few kilobytes.

        \b
        stillmotion train textual-inversion --base emoji \\
            --images my-dog/ --token "<my-dog>" --initializer-word dog --output runs/word

        Nothing of the model changes but the word. OUTPUT/embedding.safetensors is what `stillmotion animate
        --embedding` and diffusers' load_textual_inversion read. The same command goes on where it was. Step
        by step: docs/training-images.md
        """,
    ),
    "domain-adapter": Kind(
        DomainAdapterConfig,
        "domain_adapter:DomainAdapterTarget",
        """Train an image LoRA on single frames of videos, so that motion need not learn how they look.

        \b
        stillmotion train domain-adapter --base emoji \\
            --videos clips/ --output runs/adapter

        First stage of AnimateDiff v3. Then `stillmotion train motion --domain-adapter
        runs/adapter/adapter.safetensors` keeps it on, frozen, while motion trains; in clips it can be left
        out or scaled (`stillmotion animate --lora runs/adapter/adapter.safetensors=0.5`). The same command
        goes on where it was. Step by step: docs/training-motion-lora.md
        """,
    ),
    "motion-lora": Kind(
        MotionLoraConfig,
        "motion_lora:MotionLoraTarget",
        """Train a motion LoRA: a small file that gives a motion module one kind of movement.

        \b
        From one video:
        stillmotion train motion-lora --base emoji \\
            --reference rocket.webp --prompt "rocket" --output runs/rocket
        From a folder of videos:
        stillmotion train motion-lora --base emoji --videos clips/ --output runs/moves
        A move of the camera, made from stills (or clips):
        stillmotion train motion-lora --base emoji \\
            --videos stills/ --camera zoom-in --output runs/zoom-in

        Base and motion stay as they are. OUTPUT/motion-lora.safetensors is what `stillmotion animate
        --motion-lora` and other AnimateDiff programs read, OUTPUT/motion-lora-peft.safetensors what
        diffusers' AnimateDiffPipeline loads. The same command goes on where it was. Step by step:
        docs/training-motion-lora.md
        """,
    ),
}
"""Name of the command -> what it trains."""


def train(config: TrainConfig, on_step: Callable[[Step], None] | None = None) -> Outcome:
    """Trains what the config describes into `config.output`, or goes on with the run that is there.

    Raises DataError (nothing usable), TrainingError (a run gone wrong), WeightsError (base or other weights).
    """
    from stillmotion.training.engine.loop import run

    config = _with_resolution(config)
    module, _, name = next(k.target for k in KINDS.values() if type(config) is k.config).partition(":")
    target = getattr(import_module(f"stillmotion.training.targets.{module}"), name)
    return run(config, target, on_step)


def _with_resolution(config: TrainConfig) -> TrainConfig:
    """The same with a resolution: that of the run which is there, else that of the base."""
    from stillmotion.checkpoints.base_model import native_size
    from stillmotion.training.engine.checkpoint import last_settings

    if not isinstance(config, DenoiseConfig) or config.resolution is not None:
        return config
    before = last_settings(config.output).get("resolution")
    return config.model_copy(update={"resolution": before or native_size(config.base)})


def train_motion(config: MotionTrainConfig, on_step: Callable[[Step], None] | None = None) -> Outcome:
    """`train` for a motion module: weights into `config.output`/motion."""
    return train(config, on_step)
