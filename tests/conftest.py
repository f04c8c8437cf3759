"""What every test shares: no network, few threads, `import tiny` from any room, and tiny models on disk."""

from __future__ import annotations

import os
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
