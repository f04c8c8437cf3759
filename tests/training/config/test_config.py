from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stillmotion.cli import train as cli
from stillmotion.diffusion.schedule import ANIMATEDIFF
from stillmotion.errors import RequestError
from stillmotion.training import KINDS, MotionTrainConfig, load_config

NEEDED = {"output": "run", "base": "b", "videos": "v"}


def test_the_papers_recipe_is_the_default():
    config = MotionTrainConfig.parse(**NEEDED)
    assert (config.frames, config.stride, config.learning_rate) == (16, 4, 1e-4)
    assert list(ANIMATEDIFF.said().values()) == ["linear", 0.00085, 0.012]
    assert {getattr(config, name) for name in ANIMATEDIFF.said()} == {None}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"learning_rat": 1}, "learning_rat is not a field of this training; did you mean learning_rate?"),
        ({"frames": 1}, "frames is 1, but: input should be greater than or equal to 2."),
        ({"precision": "fp8"}, "precision is 'fp8', but: input should be 'auto', 'fp32' or 'bf16'."),
        ({"frames": 40}, "frames is 40, but positions (32) must be at least that."),
        ({"zero_terminal_snr": True, "prediction_type": "epsilon"}, "zero_terminal_snr needs"),
        ({"batch_size": True}, "batch_size is True, but: value error, a yes or no"),
        ({"learning_rate": "inf"}, "learning_rate is 'inf', but: input should be a finite number"),
        ({"resolution": 2**40}, "resolution is 1099511627776, but: input should be less than"),
        ({"seed": 2**70}, "seed is 1180591620717411303424, but: input should be less than"),
    ],
)
def test_wrong_fields_are_said_in_a_sentence(fields, words):
    with pytest.raises(RequestError) as error:
        MotionTrainConfig.parse(**NEEDED, **fields)
    assert str(error.value).startswith(words)


def test_a_missing_field_says_what_it_is():
    with pytest.raises(RequestError, match="base is missing: text-to-image model"):
        MotionTrainConfig.parse(output="run", videos="v")


def test_yaml_and_values_that_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: run\nbase: b\nvideos: v\nlearning_rate: 1e-5\nloop: true\n", "utf-8")
    config = load_config(MotionTrainConfig, path, learning_rate=2e-5)
    assert config.loop and config.learning_rate == 2e-5 and config.output == Path("run")
    assert load_config(MotionTrainConfig, path).learning_rate == 1e-5


@pytest.mark.parametrize(
    "text, words",
    [
        ("- a\n", "holds list"),
        ("1: 2\n", "expected lines such as"),
        ("? \n: x\n", "expected lines such as"),
        ("a: [", "not valid YAML"),
        ("seed: x", "seed is 'x'"),
        ("seed: 1\nseed: 2", "'seed' stands in it twice"),
        ("learning_rate: .nan", "numbers must be finite"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "c: [" + ", ".join(["*b"] * 5000) + "]", "written out"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RequestError, match=words) as error:
        load_config(MotionTrainConfig, path)
    assert "run.yaml" in str(error.value)
    with pytest.raises(RequestError, match="cannot be read"):
        load_config(MotionTrainConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_config_is_valid(kind):
    path = Path(__file__).parents[3] / "configs" / f"train-{kind}.yaml"
    config = load_config(KINDS[kind].config, path)
    assert config == KINDS[kind].config.parse(**config.model_dump())


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_a_flag_with_help(kind):
    result = CliRunner().invoke(cli.train, [kind, "--help"])
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    for name, field in KINDS[kind].config.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "motion"])
def test_help_begins_with_a_command_that_can_be_typed(kind, monkeypatch):
    """The command in the help has all that its config needs."""
    got = []
    monkeypatch.setattr("stillmotion.training.train", got.append)
    shown = CliRunner().invoke(cli.train, [kind, "--help"]).output.replace("\\\n", " ")
    line = next(line for line in shown.splitlines() if line.startswith(f"  stillmotion train {kind} "))
    result = CliRunner().invoke(cli.train, shlex.split(line)[2:])
    assert result.exit_code == 0, result.output
    assert (got[0].base, got[0].resolution) == ("emoji", None) and type(got[0]) is KINDS[kind].config


def test_flags_reach_the_training(monkeypatch, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: run\nbase: b\nvideos: v\nloop: true\nseed: 3\n", "utf-8")
    got = []
    monkeypatch.setattr("stillmotion.training.train", got.append)
    flags = [
        "--no-loop",
        "--learning-rate",
        "2e-5",
        "--validation-prompts",
        "a cat",
        "--validation-prompts",
        "a dog",
    ]
    result = CliRunner().invoke(cli.train, ["motion", "--config", str(path), *flags, "--span", "whole"])
    assert result.exit_code == 0, result.output
    (config,) = got
    assert (config.loop, config.learning_rate, config.seed, config.span) == (False, 2e-5, 3, "whole")
    assert config.validation_prompts == ["a cat", "a dog"]


def test_help_needs_no_torch():
    code = "import sys, stillmotion.cli.train; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_takes_its_resolution_from_the_run_that_is_there_or_the_base(tmp_path, sd15_folder):
    from stillmotion.training import _with_resolution
    from stillmotion.training.engine import checkpoint

    config = MotionTrainConfig.parse(output=tmp_path / "run", base=str(sd15_folder), videos="v")
    assert config.resolution is None and _with_resolution(config).resolution == 16
    said = MotionTrainConfig.parse(output=tmp_path / "run", base=str(sd15_folder), videos="v", resolution=24)
    facts = {"settings": {"resolution": 256}, "shapes": {}}
    checkpoint.write(tmp_path / "run", 5, {"weights": torch.zeros(2)}, facts, keep=2)
    assert _with_resolution(config).resolution == 256 and _with_resolution(said).resolution == 24
    checkpoint.write(tmp_path / "run", 10, {"weights": torch.zeros(2)}, facts, keep=2)
    (tmp_path / "run" / "checkpoints" / "step-00000010" / "trainer.json").write_text("{")
    assert _with_resolution(config).resolution == 256, "a torn one does not count"
