"""Settings of training runs: what all share, and one class per target. Knows no torch."""

from stillmotion.training.config.clips import ClipConfig, MotionTrainConfig
from stillmotion.training.config.shared import DenoiseConfig, TrainConfig, load_config

__all__ = ["ClipConfig", "DenoiseConfig", "MotionTrainConfig", "TrainConfig", "load_config"]
