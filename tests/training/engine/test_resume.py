"""A run that was killed, stopped or interrupted ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stillmotion.errors import TrainingError
from stillmotion.training import train_motion
from stillmotion.training.engine import checkpoint
from stillmotion.training.engine.logger import read_losses

RUN = [sys.executable, "-c", "from stillmotion.cli.train import train; train()", "motion", "--config"]


def same_end(one: Path, other: Path) -> None:
    first, second = (checkpoint.checkpoints(output)[-1] for output in (one, other))
    assert first.name == second.name
    a, b = (load_file(path / "state.safetensors") for path in (first, second))
    assert a.keys() == b.keys() > {"weights", "ema"}
    assert any(name.startswith(("adam.", "muon.")) for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read_losses(one / "loss.csv") == read_losses(other / "loss.csv")
    files = [load_file(output / "motion" / "diffusion_pytorch_model.safetensors") for output in (one, other)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("step", "optimizer"), [(1, "adamw"), (4, "muon"), (5, "adamw"), (8, "muon")])
def test_interrupted_anywhere_it_ends_the_same(configure, step, optimizer):
    fields = {"max_train_steps": 9, "checkpoint_steps": 4, "lr_schedule": "cosine", "lr_warmup_steps": 3}
    fields["optimizer"] = optimizer
    whole = train_motion(configure("whole", **fields))

    def interrupt(row):
        if row.step == step:
            raise Interrupted

    broken = configure("broken", **fields)
    with pytest.raises(Interrupted):
        train_motion(broken, interrupt)
    steps = []
    assert train_motion(broken, steps.append).finished
    assert steps[0].step == (5 if step > 4 else 1)
    same_end(whole.output, broken.output)


def test_a_signal_stops_cleanly_and_the_same_command_goes_on(configure):
    whole = train_motion(configure("whole"))
    config = configure("stopped")
    before = signal.getsignal(signal.SIGTERM)
    first = train_motion(config, lambda row: row.step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    assert (first.finished, first.step) == (False, 3)
    assert signal.getsignal(signal.SIGTERM) is before
    assert train_motion(config).finished
    same_end(whole.output, config.output)


def test_two_runs_into_one_folder_are_refused_and_the_first_is_not_disturbed(configure):
    config = configure("run")

    def second(row):
        with pytest.raises(TrainingError, match="Another run is writing into .*run: wait"):
            train_motion(config)

    whole = train_motion(configure("whole"))
    assert train_motion(config, second).finished
    same_end(whole.output, config.output)
    assert train_motion(config).finished, "the lock ends with the run"


def test_the_clock_stops_too(configure):
    config = configure("run", max_minutes=1e-6)
    assert train_motion(config).step == 1
    assert train_motion(config).step == 2
    assert train_motion(configure("run")).finished


def test_a_finished_run_stays_finished_and_can_be_prolonged(configure):
    config = configure("run", max_train_steps=2)
    train_motion(config)
    state = checkpoint.read_newest(config.output)
    again = train_motion(config)
    assert again.finished and again.step == 2
    assert torch.equal(checkpoint.read_newest(config.output).tensors["weights"], state.tensors["weights"])
    assert train_motion(configure("run", max_train_steps=4)).step == 4


def test_other_settings_are_said(configure, capsys):
    train_motion(configure("run", max_train_steps=2))
    train_motion(configure("run", max_train_steps=3, learning_rate=2e-3))
    said = " ".join(capsys.readouterr().err.split())
    assert "learning_rate was 0.001 until step 2 and is 0.002 from here on" in said


def test_a_checkpoint_of_an_older_version_goes_on_and_its_other_draws_are_said(configure, capsys):
    config = configure("run", max_train_steps=1)
    train_motion(config)
    facts = checkpoint.checkpoints(config.output)[-1] / "trainer.json"
    facts.write_text(facts.read_text().replace('"draws": "by name",', ""), "utf-8")
    capsys.readouterr()
    assert train_motion(configure("run", max_train_steps=2)).step == 2
    assert "older version, which drew its samples otherwise" in " ".join(capsys.readouterr().err.split())
    train_motion(configure("run", max_train_steps=3))
    assert "older version" not in capsys.readouterr().err


def test_other_clips_are_said(configure, clips, tmp_path, capsys):
    config = configure("run", max_train_steps=1)
    train_motion(config)
    for path in list(clips.glob("*.webp"))[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    train_motion(configure("run", max_train_steps=2, videos=tmp_path))
    assert "the training data are not those of the last start" in " ".join(capsys.readouterr().err.split())


def test_another_network_is_refused(configure):
    train_motion(configure("run", max_train_steps=1))
    with pytest.raises(TrainingError, match=r"of another network.*mid_block.*missing here"):
        train_motion(configure("run", max_train_steps=2, mid_block=False))


def test_checkpoints_are_whole_few_and_named(tmp_path):
    facts = {"settings": {}, "shapes": {}}
    for step in (5, 10, 15, 100):
        checkpoint.write(tmp_path, step, {"weights": torch.full((3,), step)}, facts, keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000015", "step-00000100"]
    saved = checkpoint.read_newest(tmp_path)
    assert saved.step == 100 and saved.tensors["weights"].tolist() == [100] * 3


def test_an_interrupted_write_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, 5, {"weights": torch.ones(3)}, {}, keep=2)
    half = tmp_path / "checkpoints" / ".step-00000010.abcd.part"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    assert checkpoint.read_newest(tmp_path).step == 5
    checkpoint.write(tmp_path, 10, {"weights": torch.ones(3)}, {}, keep=2)
    assert not half.exists()


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = checkpoint.write(tmp_path, 5, {"weights": torch.ones(3)}, {}, keep=2)
    (path / "state.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(TrainingError, match=r"step-00000005 is damaged .*remove this folder"):
        checkpoint.read_newest(tmp_path)


def write_config(settings, path: Path, **fields) -> Path:
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in (settings | fields).items()
    }
    path.write_text(yaml.safe_dump(dict(plain.items())), "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [3, 10, 17])
def test_killed_with_sigkill_it_ends_the_same(settings, tmp_path, kill_at):
    fields = {
        "max_train_steps": 24,
        "checkpoint_steps": 7,
        "output": tmp_path / "killed",
        "precision": "bf16",
    }
    config = write_config(settings, tmp_path / "run.yaml", **fields)
    process = subprocess.Popen([*RUN, str(config)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_losses(tmp_path / "killed" / "loss.csv")) < kill_at and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(read_losses(tmp_path / "killed" / "loss.csv")) < 24

    subprocess.run([*RUN, str(config)], check=True)
    whole = write_config(settings, tmp_path / "whole.yaml", **fields | {"output": tmp_path / "whole"})
    subprocess.run([*RUN, str(whole)], check=True)
    same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(settings, tmp_path):
    fields = {"max_train_steps": 5, "text_dropout": 0.0, "device": None}  # found, as users leave it
    one = write_config(settings, tmp_path / "one.yaml", **fields, output=tmp_path / "one", batch_size=4)
    two = write_config(settings, tmp_path / "two.yaml", **fields, output=tmp_path / "two", batch_size=2)
    subprocess.run([*RUN, str(one)], check=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "go.py"
    script.write_text("from stillmotion.cli.train import train\ntrain()\n", "utf-8")
    subprocess.run([*launch, str(script), "motion", "--config", str(two)], check=True, timeout=300)
    states = [checkpoint.read_newest(tmp_path / name) for name in ("one", "two")]
    assert [state.facts["processes"] for state in states] == [1, 2]
    losses = [[row.loss for row in read_losses(tmp_path / name / "loss.csv")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.allclose(states[0].tensors["weights"], states[1].tensors["weights"], atol=1e-4)
