"""Whatever a kill or the user did to what a run ends in: the same command makes it again, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stillmotion.errors import TrainingError
from stillmotion.training import KINDS, train
from stillmotion.training.engine import checkpoint as checkpoints

KEPT = {"checkpoints", "latents", "class-images", ".lock", "loss.png"}


@pytest.fixture
def configure(settings, brief, clips, images, emoji_folder, tmp_path):
    """`configure(kind, name, field=value)` for every kind that can be trained."""
    short = {"max_train_steps": 2, "validation_steps": 2, "validation_inference_steps": 2}
    prompt = {"instance_prompt": "a red dog"}
    on_motion = settings | {"base": str(emoji_folder), "rank": 2, "span": "whole", "ema_decay": 0}
    single = {"reference": clips / "red-square.webp", "prompt": "a red rocket", "videos": None}
    adapter = {
        name: value
        for name, value in settings.items()
        if name not in ("frames", "stride", "ema_decay", "learning_rate")
    }
    kinds = {
        "motion": ("motion", settings),
        "motion without ema": ("motion", settings | {"ema_decay": 0}),
        "lora": ("lora", brief | {"images": images, "rank": 2, "ema_decay": 0.9}),
        "dreambooth": ("dreambooth", brief | prompt | {"instance_images": images, "rank": 2}),
        "dreambooth full": (
            "dreambooth",
            brief | prompt | {"instance_images": images, "method": "full"},
        ),
        "textual-inversion": (
            "textual-inversion",
            brief | {"images": images, "token": "<dog>", "initializer_word": "dog"},
        ),
        "domain-adapter": ("domain-adapter", adapter | {"rank": 2}),
        "motion-lora": ("motion-lora", on_motion),
        "motion-lora of a reference": ("motion-lora", on_motion | single),
    }

    def make(kind, name="run", **fields):
        name_of_kind, own = kinds[kind]
        return KINDS[name_of_kind].config.parse(**(own | short | {"output": tmp_path / name} | fields))

    return make


def artifacts(output: Path) -> dict[str, object]:
    """The content of everything that is not needed for going on; of safetensors, tensors and keys."""
    files = [path for path in output.rglob("*") if path.is_file()]
    inside = {path.relative_to(output): path for path in files}
    return {str(name): content(path) for name, path in inside.items() if name.parts[0] not in KEPT}


def content(path: Path) -> object:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
            return tensors, sorted(file.metadata() or ())
    except SafetensorError as error:
        return str(error)


def different(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of unlike content, without those that also say when and under which name they were made."""
    free = ("loss.csv", "stillmotion.json", "tokenizer.json")  # transformers writes its last padding there
    return [name for name in one if one[name] != other[name] and not name.endswith(free)]


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path) -> None:
    """Another whole file: what an older checkpoint would have left."""
    if path.suffix == ".safetensors":
        save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    "kind",
    [
        "motion",
        "motion without ema",
        "lora",
        "dreambooth",
        "dreambooth full",
        "textual-inversion",
        "domain-adapter",
        "motion-lora",
        "motion-lora of a reference",
    ],
)
def test_products_that_are_missing_old_or_damaged_are_made_again(configure, kind):
    config = configure(kind)
    train(config)
    whole = artifacts(config.output)
    assert any(name.endswith(".safetensors") for name in whole) and any(".png" in name for name in whole)
    for damage in (remove, cut, zeros, swap):
        for name in whole:
            damage(config.output / name)
        left = artifacts(config.output)
        assert left != whole
        outcome = train(config)
        assert outcome.finished and outcome.step == 2
        again = {n: data for n, data in artifacts(config.output).items() if not n.startswith("model.damaged")}
        whole = {name: data for name, data in whole.items() if "step-00000000" not in name}
        assert again.keys() == whole.keys()
        assert different(whole, again) == []


def test_the_cache_of_latents_may_be_damaged_or_gone(configure, tmp_path):
    config = configure("lora", cache=tmp_path / "cache")
    train(config)
    whole = artifacts(config.output)
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    for file, damage in zip(files, (remove, cut, zeros, swap), strict=True):
        damage(file)
    train(config)
    shutil.rmtree(tmp_path / "cache")
    longer = configure("lora", cache=tmp_path / "cache", max_train_steps=3)
    assert train(longer).finished
    train(configure("lora", name="other", max_train_steps=3))
    same = (
        load_file(tmp_path / "run" / "lora.safetensors"),
        load_file(tmp_path / "other" / "lora.safetensors"),
    )
    assert all((same[0][name] == same[1][name]).all() for name in same[0]) and whole


KILLED = """
import os, signal, sys
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.training import KINDS, load_config, samples, train
from stillmotion.training.engine import checkpoint
kind, config, moment, count = sys.argv[1:]
moments = {"checkpoint": (checkpoint, "write"),
    "sheet": (samples, "save_sheet"), "product": (Lora, "save")}
module, name = moments[moment]
kept, calls = getattr(module, name), []
def dying(*args, **options):
    result = kept(*args, **options)
    calls.append(1)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(module, name, dying)
train(load_config(KINDS[kind].config, config))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "moment", "count"),
    [
        ("lora", "checkpoint", 2),
        ("lora", "sheet", 2),  # that of the last step; the first is of step 0
        ("lora", "product", 3),  # between the two layouts of the last step
        ("motion", "checkpoint", 1),
        ("motion", "checkpoint", 2),
        ("motion-lora of a reference", "checkpoint", 2),
        ("dreambooth full", "checkpoint", 2),
    ],
)
def test_killed_after_the_checkpoint_the_products_are_those_of_a_whole_run(
    configure, tmp_path, kind, moment, count
):
    fields = {"max_train_steps": 4, "checkpoint_steps": 2, "validation_steps": 4}
    config, whole = configure(kind, **fields), configure(kind, "whole", **fields)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    command = [sys.executable, "-c", KILLED, kind.split()[0], str(tmp_path / "run.yaml"), moment, str(count)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    train(config)
    train(whole)
    killed, unharmed = artifacts(config.output), artifacts(whole.output)
    assert killed.keys() == unharmed.keys()
    assert different(killed, unharmed) == ["config.yaml"], "which names the output"


def test_weights_that_are_nan_never_become_a_checkpoint(configure, monkeypatch):
    from stillmotion.training.engine.flat_params import FlatParameters

    config = configure("lora", max_train_steps=4, checkpoint_steps=2, validation_steps=0)
    publish = FlatParameters.copy_to_model

    def spoil(self, weights=None):
        publish(self, weights)
        if self.grad is not None and checkpoints.checkpoints(config.output):
            self.weights[0] = float("nan")

    monkeypatch.setattr(FlatParameters, "copy_to_model", spoil)
    with pytest.raises(TrainingError, match=r"At step \d .*nan.*step-00000002; start the same command"):
        train(config)
    assert [path.name for path in checkpoints.checkpoints(config.output)] == ["step-00000002"]
