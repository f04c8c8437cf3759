"""stillmotion turns still-image diffusion models into animators.

The public names are loaded on first use, so that importing the package (and `stillmotion --help`) stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillmotion.runtime.startup import collector_paused
from stillmotion.sampling.conditions import CONDITIONS

if TYPE_CHECKING:
    from stillmotion.attachments.base import Attachment
    from stillmotion.attachments.control import ControlAttachment
    from stillmotion.attachments.frames import FrameContext
    from stillmotion.attachments.lora import LoraAttachment
    from stillmotion.attachments.motion import MotionAttachment
    from stillmotion.attachments.stack import AttachmentStack
    from stillmotion.checkpoints.attach import attach
    from stillmotion.checkpoints.identify import identify
    from stillmotion.checkpoints.lora_model import Lora, attach_lora
    from stillmotion.checkpoints.motion_model import MotionModel
    from stillmotion.diffusion.noise import progressive_noise
    from stillmotion.errors import StillmotionError
    from stillmotion.motion.config import MotionConfig
    from stillmotion.motion.families import FAMILIES
    from stillmotion.request import Request
    from stillmotion.sampling.animator import Animator
    from stillmotion.sampling.conditions import *  # noqa: F403
    from stillmotion.sampling.conditions.base import Condition, Contribution, Run
    from stillmotion.training.config.trainer import TrainerConfig
    from stillmotion.training.trainer import Trainer
    from stillmotion.video import Clip

__version__ = "0.2.0"

_HOMES = {
    "Animator": "sampling.animator",
    "Attachment": "attachments.base",
    "AttachmentStack": "attachments.stack",
    "FrameContext": "attachments.frames",
    "LoraAttachment": "attachments.lora",
    "MotionAttachment": "attachments.motion",
    "Clip": "video",
    "Condition": "sampling.conditions.base",
    "Contribution": "sampling.conditions.base",
    "ControlAttachment": "attachments.control",
    "FAMILIES": "motion.families",
    "Lora": "checkpoints.lora_model",
    "MotionModel": "checkpoints.motion_model",
    "MotionConfig": "motion.config",
    "Request": "request",
    "Run": "sampling.conditions.base",
    "StillmotionError": "errors",
    "Trainer": "training.trainer",
    "TrainerConfig": "training.config.trainer",
    "attach": "checkpoints.attach",
    "attach_lora": "checkpoints.lora_model",
    "identify": "checkpoints.identify",
    "progressive_noise": "diffusion.noise",
}
_CONDITIONS = {place.partition(":")[2]: place.partition(":")[0] for place in CONDITIONS.values()}
"""Classes of conditions -> their modules: every row of the table is a public name."""

__all__ = [
    "FAMILIES",
    "Animator",
    "Attachment",
    "AttachmentStack",
    "FrameContext",
    "LoraAttachment",
    "MotionAttachment",
    "Clip",
    "Condition",
    "Contribution",
    "ControlAttachment",
    "Lora",
    "MotionModel",
    "MotionConfig",
    "Request",
    "Run",
    "StillmotionError",
    "Trainer",
    "TrainerConfig",
    "attach",
    "attach_lora",
    "identify",
    "progressive_noise",
    *_CONDITIONS,
]


def __getattr__(name: str) -> Any:
    place = f"stillmotion.{_HOMES[name]}" if name in _HOMES else _CONDITIONS.get(name)
    if place is None:
        raise AttributeError(f"module 'stillmotion' has no attribute {name!r}")
    with collector_paused():
        return getattr(import_module(place), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
