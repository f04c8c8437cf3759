"""What a tiny motion run needs: clips, and a cache of latents shared by all runs of the session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scene import write_clips, write_images

from stillmotion.training import MotionTrainConfig
from stillmotion.training.config import MotionLoraConfig


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 12 frames of 16x16 pixels (read only)."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def settings(clips: Path, sd15_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fields of a run that takes a second."""
    return {
        "base": str(sd15_folder),
        "videos": clips,
        "cache": tmp_path_factory.mktemp("latents"),
        "resolution": 16,
        "frames": 4,
        "stride": 2,
        "max_train_steps": 6,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "checkpoint_steps": 100,
        "validation_steps": 0,
        "precision": "fp32",
        "device": "cpu",
    }


@pytest.fixture
def configure(settings: dict[str, Any], tmp_path: Path) -> Callable[..., MotionTrainConfig]:
    """`configure("name", field=value)` is the config of a run in its own folder."""

    def make(name: str, **fields: Any) -> MotionTrainConfig:
        return MotionTrainConfig.parse(**(settings | {"output": tmp_path / name} | fields))

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 32x32 and 16x64 pixels (read only)."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def brief(sd15_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fields of a run on images that takes a second."""
    return {
        "base": str(sd15_folder),
        "cache": tmp_path_factory.mktemp("latents"),
        "resolution": 32,
        "max_train_steps": 6,
        "validation_steps": 0,
        "validation_inference_steps": 2,
        "precision": "fp32",
        "device": "cpu",
    }


@pytest.fixture
def lora_fields(settings: dict[str, Any], emoji_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Fields of a motion LoRA: a run of a second on a base that has motion inside."""
    return settings | {"base": str(emoji_folder), "rank": 2, "span": "whole", "output": tmp_path / "run"}


@pytest.fixture
def configure_lora(lora_fields: dict[str, Any], tmp_path: Path) -> Callable[..., MotionLoraConfig]:
    def make(name: str = "run", **others: Any) -> MotionLoraConfig:
        return MotionLoraConfig.parse(**(lora_fields | {"output": tmp_path / name} | others))

    return make
