"""What runs say of themselves: the header of a LoRA, config.yaml."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from stillmotion.checkpoints.hub import locate
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import DataError, WeightsError
from stillmotion.training import KINDS, load_config, train
from stillmotion.training.config import as_yaml
from stillmotion.training.engine.diagnostics import Diagnostics


@pytest.fixture
def lora(brief, images, tmp_path):
    fields = {"images": images, "output": tmp_path / "style", "rank": 2, "max_train_steps": 2}
    return KINDS["lora"].config.parse(**(brief | fields))


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_lora_says_base_steps_resolution_and_captions(lora, sd15_folder):
    train(lora)
    for name in ("lora.safetensors", "lora-peft.safetensors"):
        told = header(lora.output / name)
        assert told["ss_sd_model_name"] == sd15_folder.name and told["ss_steps"] == "2"
        assert told["ss_resolution"] == "(32, 32)" and told["modelspec.resolution"] == "32x32"
        assert told["modelspec.title"] == "style" and told["modelspec.architecture"].endswith("/lora")
        assert json.loads(told["ss_tag_frequency"])["style"]["a red apple"] == 1
        assert "modelspec.trigger_phrase" not in told, "four captions are no trigger"


def test_dreambooth_and_motion_loras_say_their_words(brief, images, configure_lora, clips, tmp_path):
    fields = {"instance_images": images, "instance_prompt": "a sks dog", "output": tmp_path / "dog"}
    train(KINDS["dreambooth"].config.parse(**(brief | fields | {"rank": 2, "max_train_steps": 1})))
    assert header(tmp_path / "dog" / "lora.safetensors")["modelspec.trigger_phrase"] == "a sks dog"
    single = {"reference": clips / "red-square.webp", "prompt": "a red rocket", "videos": None}
    train(configure_lora(**single, max_train_steps=1))
    for name in ("motion-lora.safetensors", "motion-lora-peft.safetensors", "spatial-lora.safetensors"):
        assert header(tmp_path / "run" / name)["modelspec.trigger_phrase"] == "a red rocket"


def test_the_config_of_a_run_is_in_its_folder_and_goes_on_with_it(lora, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(lora.images.parent)
    train(lora.model_copy(update={"images": lora.images.relative_to(lora.images.parent)}))
    monkeypatch.chdir(tmp_path)
    again = load_config(KINDS["lora"].config, lora.output / "config.yaml")
    assert again == lora
    capsys.readouterr()
    assert train(again).finished and "Note: images" not in capsys.readouterr().err
    assert load_config(KINDS["lora"].config, lora.output / "config.yaml", seed=3).seed == 3


def test_every_kind_reads_what_it_writes(configure_lora, tmp_path):
    config = configure_lora(camera="zoom-in", min_timestep=5)
    (tmp_path / "run.yaml").write_text(as_yaml(config), "utf-8")
    assert load_config(type(config), tmp_path / "run.yaml") == config


def test_the_rates_of_the_docs_are_not_called_too_high():
    diagnostics = Diagnostics(2e-4)
    assert not [line for _ in range(30) for line in diagnostics.update(0.1, 0.9, 0.2, 2e-3)]
    assert diagnostics.update(0.1, 0.9, 0.2, 2e-2), "a hundred times the usual one is"


def test_hints_of_short_clips_name_the_flags(configure):
    with pytest.raises(DataError, match=r"61 needed.*--stride.*--frames.*--span whole"):
        train(configure("run", frames=16, stride=4))


def test_the_folder_of_a_run_means_what_the_run_made(lora, configure, sd15_folder, tmp_path):
    train(lora)
    assert locate(lora.output) == lora.output / "lora.safetensors"
    assert Lora.load(lora.output).parts.keys() == {"unet"}
    motion = configure("motion-run", max_train_steps=1)
    train(motion)
    assert MotionModel.load(motion.output).spec == MotionModel.load(motion.output / "motion").spec
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "loss.csv").touch()
    with pytest.raises(WeightsError, match="begun is a run .* no weights yet"):
        locate(tmp_path / "begun")
    assert locate(sd15_folder) == sd15_folder
