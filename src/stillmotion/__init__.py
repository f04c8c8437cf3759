"""stillmotion turns still-image diffusion models into animators.

The names in `__all__` are the public interface. They are loaded on first use, so that importing the package
(and `stillmotion --help`) stays fast. So are the kinds of conditions, such as `ControlNet`, whose table is
`stillmotion.sampling.conditions.CONDITIONS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillmotion.runtime.startup import collector_paused
from stillmotion.sampling.conditions import CONDITIONS

if TYPE_CHECKING:
    from stillmotion.attachments.base import Attachment as Attachment
    from stillmotion.attachments.control import ControlAttachment as ControlAttachment
    from stillmotion.attachments.frames import FrameContext as FrameContext
    from stillmotion.attachments.lora import LoraAttachment as LoraAttachment
    from stillmotion.attachments.motion import MotionAttachment as MotionAttachment
    from stillmotion.attachments.stack import AttachmentStack as AttachmentStack
    from stillmotion.checkpoints.attach import attach as attach
    from stillmotion.checkpoints.base_model import load_base as load_base
    from stillmotion.checkpoints.convert import convert as convert
    from stillmotion.checkpoints.file_kinds import FileInfo as FileInfo
    from stillmotion.checkpoints.identify import identify as identify
    from stillmotion.checkpoints.ldm.write import save_single_file as save_single_file
    from stillmotion.checkpoints.lora_model import Lora as Lora
    from stillmotion.checkpoints.lora_model import attach_lora as attach_lora
    from stillmotion.checkpoints.merge import bake as bake
    from stillmotion.checkpoints.merge import merge as merge
    from stillmotion.checkpoints.merge import mix as mix
    from stillmotion.checkpoints.motion_model import MotionModel as MotionModel
    from stillmotion.diffusion.noise import progressive_noise as progressive_noise
    from stillmotion.diffusion.schedule import NoiseSchedule as NoiseSchedule
    from stillmotion.diffusion.schedulers import make_scheduler as make_scheduler
    from stillmotion.errors import AttachError as AttachError
    from stillmotion.errors import Damaged as Damaged
    from stillmotion.errors import DataError as DataError
    from stillmotion.errors import Mismatch as Mismatch
    from stillmotion.errors import OutputError as OutputError
    from stillmotion.errors import RequestError as RequestError
    from stillmotion.errors import SamplingError as SamplingError
    from stillmotion.errors import StillmotionError as StillmotionError
    from stillmotion.errors import StillmotionWarning as StillmotionWarning
    from stillmotion.errors import TrainingError as TrainingError
    from stillmotion.errors import UnknownFile as UnknownFile
    from stillmotion.errors import Unsafe as Unsafe
    from stillmotion.errors import WeightsError as WeightsError
    from stillmotion.errors import WrongKind as WrongKind
    from stillmotion.metrics.camera_motion import CameraFit as CameraFit
    from stillmotion.metrics.camera_motion import camera_of as camera_of
    from stillmotion.motion.config import MotionConfig as MotionConfig
    from stillmotion.motion.families import FAMILIES as FAMILIES
    from stillmotion.motion.families import MotionFamily as MotionFamily
    from stillmotion.motion.families import SamplingDefaults as SamplingDefaults
    from stillmotion.request import Request as Request
    from stillmotion.request.concepts import Concepts as Concepts
    from stillmotion.request.installed_models import installed_models as installed_models
    from stillmotion.request.layer_weights import LayerWeights as LayerWeights
    from stillmotion.request.model_card import ModelCard as ModelCard
    from stillmotion.request.sections import Models as Models
    from stillmotion.request.typed import RequestFields as RequestFields
    from stillmotion.sampling.animator import Animator as Animator
    from stillmotion.sampling.conditions import *  # noqa: F403
    from stillmotion.sampling.conditions.base import Condition as Condition
    from stillmotion.sampling.conditions.base import Contribution as Contribution
    from stillmotion.sampling.conditions.base import Run as Run
    from stillmotion.sampling.latents import Latents as Latents
    from stillmotion.training.config.trainer import TrainerConfig as TrainerConfig
    from stillmotion.training.trainer import Trainer as Trainer
    from stillmotion.video import Clip as Clip
    from stillmotion.video import grid as grid
    from stillmotion.video import read_frames as read_frames

__version__ = "0.2.0"

_HOMES = {
    "Animator": "sampling.animator",
    "AttachError": "errors",
    "Attachment": "attachments.base",
    "AttachmentStack": "attachments.stack",
    "CameraFit": "metrics.camera_motion",
    "Clip": "video",
    "Concepts": "request.concepts",
    "Condition": "sampling.conditions.base",
    "Contribution": "sampling.conditions.base",
    "ControlAttachment": "attachments.control",
    "Damaged": "errors",
    "DataError": "errors",
    "FAMILIES": "motion.families",
    "FileInfo": "checkpoints.file_kinds",
    "FrameContext": "attachments.frames",
    "Latents": "sampling.latents",
    "LayerWeights": "request.layer_weights",
    "Lora": "checkpoints.lora_model",
    "LoraAttachment": "attachments.lora",
    "Mismatch": "errors",
    "ModelCard": "request.model_card",
    "Models": "request.sections",
    "MotionAttachment": "attachments.motion",
    "MotionConfig": "motion.config",
    "MotionFamily": "motion.families",
    "MotionModel": "checkpoints.motion_model",
    "NoiseSchedule": "diffusion.schedule",
    "OutputError": "errors",
    "Request": "request",
    "RequestError": "errors",
    "RequestFields": "request.typed",
    "Run": "sampling.conditions.base",
    "SamplingDefaults": "motion.families",
    "SamplingError": "errors",
    "StillmotionError": "errors",
    "StillmotionWarning": "errors",
    "Trainer": "training.trainer",
    "TrainerConfig": "training.config.trainer",
    "TrainingError": "errors",
    "UnknownFile": "errors",
    "Unsafe": "errors",
    "WeightsError": "errors",
    "WrongKind": "errors",
    "attach": "checkpoints.attach",
    "attach_lora": "checkpoints.lora_model",
    "bake": "checkpoints.merge",
    "camera_of": "metrics.camera_motion",
    "convert": "checkpoints.convert",
    "grid": "video",
    "identify": "checkpoints.identify",
    "installed_models": "request.installed_models",
    "load_base": "checkpoints.base_model",
    "make_scheduler": "diffusion.schedulers",
    "merge": "checkpoints.merge",
    "mix": "checkpoints.merge",
    "progressive_noise": "diffusion.noise",
    "read_frames": "video",
    "save_single_file": "checkpoints.ldm.write",
}
"""Public name -> module. The imports for type checkers above say the same; a test compares them."""

_CONDITIONS = {place.partition(":")[2]: place.partition(":")[0] for place in CONDITIONS.values()}
"""Classes of conditions -> their modules: every row of the table is a public name."""

__all__ = sorted([*_HOMES, *_CONDITIONS])


def __getattr__(name: str) -> Any:
    place = f"stillmotion.{_HOMES[name]}" if name in _HOMES else _CONDITIONS.get(name)
    if place is None:
        raise AttributeError(f"module 'stillmotion' has no attribute {name!r}")
    with collector_paused():
        return getattr(import_module(place), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
