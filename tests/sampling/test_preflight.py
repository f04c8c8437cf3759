"""What names and headers tell is said before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.errors import Mismatch, StillmotionError
from stillmotion.request import Request
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.preflight import check_before_loading


@pytest.fixture(scope="module")
def base_file(sd15_folder, tmp_path_factory) -> Path:
    return save_single_file(load_base(sd15_folder), tmp_path_factory.mktemp("base") / "base.safetensors")


def asked(base: object, motion: object, **fields: object) -> Request:
    return Request.parse(prompt="x", base=str(base), motion=str(motion), **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frames": 33}, r"positions for 32 at once: use at most `frames=32`"),
        ({"clip_skip": 9}, r"text encoder has layers for at most \d \(`clip_skip="),
        ({"vae": "nowhere.safetensors"}, "no file or folder nowhere.safetensors"),
        ({"loras": {"nowhere.safetensors": 1}}, "no file or folder nowhere.safetensors"),
        ({"embeddings": {"nowhere.pt": ""}}, "no file or folder nowhere.pt"),
    ],
)
def test_what_cannot_be_drawn_is_said(fields, words, sd15_folder, motion_folder) -> None:
    check_before_loading(asked(sd15_folder, motion_folder, frames=32, clip_skip=1))
    with pytest.raises(StillmotionError, match=words):
        check_before_loading(asked(sd15_folder, motion_folder, **fields))


def test_base_and_motion_in_each_others_place(sd15_folder, motion_folder, base_file) -> None:
    for base in (sd15_folder, base_file):
        words = "Base and motion are swapped.*Give `base=.*` and `motion="
        with pytest.raises(Mismatch, match=words):
            check_before_loading(asked(motion_folder, base))
        with pytest.raises(Mismatch, match=words):
            Animator.load(str(motion_folder), str(base))
        check_before_loading(asked(base, motion_folder))
        check_before_loading(asked(base, "none"))


def test_nothing_heavy_is_needed(sd15_folder, motion_folder) -> None:
    code = (
        "import sys; from stillmotion.cli import run\n"
        f"code = run(['animate', 'x', '--base', {str(sd15_folder)!r}, '--motion', {str(motion_folder)!r}, "
        "'--frames', '99', '-o', 'x.gif'])\n"
        "assert code == 2 and not {'torch', 'diffusers'} & set(sys.modules), code"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert "--frames 32" in said.stderr


@pytest.mark.parametrize(("typed", "meant"), [("zoom_in", "zoom-in"), ("high-contrst", "high-contrast")])
def test_a_mistyped_installed_lora_is_suggested(typed: str, meant: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StillmotionError, match=f"no file or folder {typed}. Did you mean {meant}"):
        check_before_loading(Request.parse(prompt="x", loras={typed: 1}))
