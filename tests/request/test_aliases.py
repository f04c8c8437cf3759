"""Old names go on working: what was written before a name changed means the same as what is written now."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_motion

from stillmotion.checkpoints.convert import convert
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.motion_detect import family_from_json, family_to_json
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.cli import run
from stillmotion.errors import RequestError
from stillmotion.motion.families import V1
from stillmotion.request import Request, aliases
from stillmotion.request.model_card import CARD, ModelCard
from stillmotion.training import KINDS, MotionTrainConfig, load_config
from stillmotion.training.config import MotionLoraConfig

OLD = {"motion_strength": 0.5, "parity": "diffusers", "lora_parity": "original"}
NEW = {"motion_scale": 0.5, "group_norm": "pooled", "lora_alpha": "ignore"}


def test_every_new_name_is_a_field() -> None:
    assert set(aliases.REQUEST.names.values()) <= set(Request.model_fields)
    settings = {name for kind in KINDS.values() for name in kind.config.model_fields}
    assert set(aliases.TRAINING.names.values()) <= settings
    assert not set(aliases.TRAINING.names) & settings and not set(aliases.REQUEST.names) & set(
        Request.model_fields
    )


def test_requests_of_older_versions() -> None:
    new = Request(prompt="x", **NEW)
    assert Request.from_json({"version": 6, "prompt": "x", **OLD}) == new
    assert Request(prompt="x", **OLD) == Request.parse(prompt="x", **OLD) == new
    assert Request(prompt="x").replace(**OLD) == new == new.replace(**OLD)
    assert Request(prompt="x", motion_scale=2.0).replace(motion_strength=0.5).motion_scale == 0.5
    kept = {"parity": "original", "lora_parity": "kohya"}
    assert Request(prompt="x", **kept) == Request(prompt="x", group_norm="family", lora_alpha="use")
    assert json.loads(Request(prompt="x", **OLD).to_json()).keys() & OLD.keys() == set()


def test_old_and_new_name_together_must_agree() -> None:
    assert Request(prompt="x", motion_scale=0.5, motion_strength=0.5).motion_scale == 0.5
    with pytest.raises(RequestError, match="motion_scale is given twice"):
        Request(prompt="x", motion_scale=1.0, motion_strength=0.5)


def test_wrong_values_are_told_by_the_new_name() -> None:
    with pytest.raises(RequestError, match="group_norm is comfy, .* give `group_norm="):
        Request(prompt="x", parity="comfy")
    with pytest.raises(RequestError, match="motion_scale is -1"):
        Request(prompt="x", motion_strength=-1)


def test_model_cards(tmp_path) -> None:
    (tmp_path / CARD).write_text(json.dumps({"defaults": {"motion_strength": 0.5, "frames": 4}}))
    assert ModelCard.read(tmp_path).defaults == {"motion_scale": 0.5, "frames": 4}


def test_flags_work_and_are_not_shown(capsys, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("stillmotion.cli.animate.render", lambda job, *rest: asked.extend(job.requests))
    flags = ["--motion-strength", "0.5", "--parity", "diffusers", "--lora-parity", "original"]
    assert run(["animate", "x", *flags]) == 0
    assert asked == [Request(prompt="x", **NEW)]
    assert run(["animate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--motion-scale" in shown and not any(flag in shown for flag in flags if flag.startswith("--"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"near_frames": True}, {"local_init": True}),
        ({"motion_norm": "clip"}, {"motion_norm": "pooled"}),
        ({"motion_norm": "frame"}, {"motion_norm": "per-frame"}),
    ],
)
def test_settings_of_motion_training(old, new, tmp_path) -> None:
    fields = {"base": "emoji", "videos": "clips", "output": "out"}
    expected = MotionTrainConfig.parse(**fields, **new)
    assert MotionTrainConfig.parse(**fields, **old) == MotionTrainConfig(**fields, **old) == expected
    (tmp_path / "run.yaml").write_text(json.dumps(fields | old))
    assert load_config(MotionTrainConfig, tmp_path / "run.yaml") == expected
    assert load_config(MotionTrainConfig, tmp_path / "run.yaml", local_init=False).local_init is False


def test_settings_of_camera_loras() -> None:
    fields = {"base": "emoji", "videos": "stills", "output": "out", "camera": "pan-left"}
    new = MotionLoraConfig.parse(**fields, static_input_fraction=0.5)
    assert MotionLoraConfig.parse(**fields, camera_unseen=0.5) == new


def test_flags_of_training(monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr("stillmotion.training.train", asked.append)
    shared = ["--base", "emoji", "--videos", "clips", "--output", "out"]
    assert run(["train", "motion", *shared, "--near-frames", "--motion-norm", "clip"]) == 0
    assert run(["train", "motion", *shared, "--local-init", "--motion-norm", "pooled"]) == 0
    assert asked[0] == asked[1] and asked[0].local_init and asked[0].motion_norm == "pooled"
    assert run(["train", "motion", "--help"]) == 0
    assert "near-frames" not in capsys.readouterr().out


def test_a_size_that_nobody_said_is_not_taken_from_old_headers() -> None:
    before = {**V1.columns(), "name": "mine", "base": "custom", "resnet_norm": "clip"}
    assert family_from_json(json.dumps(before)).sampling.width is None
    assert family_from_json(json.dumps({**before, "width": 64, "height": 64})).sampling.width == 64
    assert family_from_json(json.dumps({**before, "base": "sd15"})).sampling.width == 512


def test_headers_of_motion_files() -> None:
    before = {**V1.columns(), "resnet_norm": "clip", "motion_norm": "frame"}
    assert family_from_json(json.dumps(before)) == family_from_json(family_to_json(V1)) == V1


@pytest.mark.parametrize(
    ("kind", "new"), [("motion", "animatediff"), ("checkpoint", "ldm"), ("lora", "animatediff")]
)
def test_layouts(kind, new) -> None:
    assert aliases.layout_of_kind("original", kind) == aliases.layout_of_kind(new, kind) == new
    assert aliases.layout_of_kind(None, kind) is None


def test_convert_to_the_original_layout(tmp_path, motion_folder) -> None:
    files = [
        convert(motion_folder, tmp_path / f"{name}.safetensors", name) for name in ("original", "animatediff")
    ]
    assert [identify(file).layout for file in files] == ["animatediff", "animatediff"]
    states = [MotionModel.load(file).state_dict() for file in files]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert run(["convert", str(motion_folder), str(tmp_path / "c.safetensors"), "--layout", "original"]) == 0
    model = MotionModel.from_state(tiny_motion().family, tiny_motion().state_dict())
    assert identify(model.save(tmp_path / "m.safetensors", layout="original")).layout == "animatediff"
