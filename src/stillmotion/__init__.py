"""stillmotion turns still-image diffusion models into animators.

The public names are loaded on first use, so that importing the package (and `stillmotion --help`) stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillmotion.runtime.startup import collector_paused

if TYPE_CHECKING:
    from stillmotion.attachments.motion import MotionAttachment, attach
    from stillmotion.checkpoints.identify import identify
    from stillmotion.checkpoints.lora_model import Lora, LoraAttachment, attach_lora
    from stillmotion.checkpoints.motion_model import MotionModel
    from stillmotion.diffusion.noise import progressive_noise
    from stillmotion.errors import StillmotionError
    from stillmotion.motion.config import MotionConfig
    from stillmotion.motion.families import FAMILIES
    from stillmotion.request import Request
    from stillmotion.sampling.animator import Animator
    from stillmotion.training.config.trainer import TrainerConfig
    from stillmotion.training.trainer import Trainer
    from stillmotion.video import Clip

__version__ = "0.2.0"

_HOMES = {
    "Animator": "sampling.animator",
    "LoraAttachment": "checkpoints.lora_model",
    "MotionAttachment": "attachments.motion",
    "Clip": "video",
    "FAMILIES": "motion.families",
    "Lora": "checkpoints.lora_model",
    "MotionModel": "checkpoints.motion_model",
    "MotionConfig": "motion.config",
    "Request": "request",
    "StillmotionError": "errors",
    "Trainer": "training.trainer",
    "TrainerConfig": "training.config.trainer",
    "attach": "attachments.motion",
    "attach_lora": "checkpoints.lora_model",
    "identify": "checkpoints.identify",
    "progressive_noise": "diffusion.noise",
}

__all__ = [
    "FAMILIES",
    "Animator",
    "LoraAttachment",
    "MotionAttachment",
    "Clip",
    "Lora",
    "MotionModel",
    "MotionConfig",
    "Request",
    "StillmotionError",
    "Trainer",
    "TrainerConfig",
    "attach",
    "attach_lora",
    "identify",
    "progressive_noise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stillmotion' has no attribute {name!r}")
    with collector_paused():
        return getattr(import_module(f"stillmotion.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
