"""What every test shares: no network, few threads, `import tiny` from any room, and tiny models on disk."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a tiny Stable Diffusion 1.5 (read only: tests that change it make a copy)."""
    from tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("bases") / "tiny-sd15"
    tiny_pipeline("sd15", folder=folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a tiny Stable Diffusion XL (read only: tests that change it make a copy)."""
    from tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("bases") / "tiny-sdxl"
    tiny_pipeline("sdxl", folder=folder)
    return folder


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Motion that fits both tiny bases, as `MotionModel.save` writes it."""
    from tiny import tiny_motion

    from stillmotion.checkpoints.motion_model import MotionModel

    net = tiny_motion()
    folder = tmp_path_factory.mktemp("motions") / "tiny-motion"
    MotionModel.from_state(net.family, net.state_dict()).save(folder)
    return folder


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory: pytest.TempPathFactory, sd15_folder: Path, motion_folder: Path) -> Path:
    """A model as the bundled one is laid out: base, motion/, stillmotion.json and concepts.json."""
    folder = tmp_path_factory.mktemp("bundled") / "emoji"
    shutil.copytree(sd15_folder, folder)
    shutil.copytree(motion_folder, folder / "motion")
    defaults = {"frames": 3, "num_inference_steps": 2}
    card = {"name": "emoji", "family": "emoji", "defaults": defaults, "concepts": "concepts.json"}
    (folder / "stillmotion.json").write_text(json.dumps(card))
    concepts = [
        {"name": "rocket", "keywords": ["space", "launch"], "group": "travel", "animated": True},
        {"name": "red apple", "keywords": ["fruit"], "group": "food", "animated": False},
    ]
    (folder / "concepts.json").write_text(json.dumps({"styles": ["3d render"], "concepts": concepts}))
    return folder
