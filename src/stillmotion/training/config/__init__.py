"""Settings of training runs: what all share, and one class per target."""

from stillmotion.training.config.motion_lora import MotionLoraConfig
from stillmotion.training.config.shared import DenoiseConfig, TrainConfig, as_yaml, load_config, plain_fields
from stillmotion.training.config.videos import ClipConfig, DomainAdapterConfig, MotionTrainConfig, VideoConfig

__all__ = [
    "ClipConfig",
    "DenoiseConfig",
    "DomainAdapterConfig",
    "MotionLoraConfig",
    "MotionTrainConfig",
    "TrainConfig",
    "VideoConfig",
    "as_yaml",
    "load_config",
    "plain_fields",
]
