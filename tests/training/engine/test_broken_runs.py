"""Run folders and streams as power cuts, full disks, other runs and people leave them; signals."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from stillmotion.errors import OutputError, StillmotionError, TrainingError
from stillmotion.training import train_motion
from stillmotion.training.engine import checkpoint
from stillmotion.training.engine.logger import Logger, Steadfast, read_losses
from stillmotion.training.engine.run_folder import claim
from stillmotion.training.engine.stop import Stop
from stillmotion.training.samples import sample_sheet

RUN = [sys.executable, "-m", "stillmotion", "train", "motion", "--config"]
ROW = "step,loss,learning_rate,grad_norm\r\n1,0.5,0.1,2.0\r\n2,0.25,0.1,2.0\r\n"


@pytest.mark.parametrize(
    "spoilt",
    [
        ROW + "3,0.1,0.1",
        ROW + "3,0.1,0.1,1.0",  # without its end of line: 1.0 may be the beginning of 1.05
        ROW + "\0" * 40,
        ROW + "3,\0\0,0.1,1\r\n",
        ROW + "3\r\n\r\n,,,\r\nx,y,z,w\r\n",
        ROW.partition("\n")[2],
        ROW.replace("\r\n", "\n") + "2,0.25,0.1,2.0\n",
    ],
)
def test_spoilt_lines_of_the_losses_are_left_out(tmp_path, spoilt):
    (tmp_path / "loss.csv").write_bytes(spoilt.encode() + b"\xff\xfe")
    assert [(row.step, row.loss) for row in read_losses(tmp_path / "loss.csv")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("content", [b"", b"\0" * 64])
def test_losses_that_are_gone_are_none(tmp_path, content):
    (tmp_path / "loss.csv").write_bytes(content)
    assert read_losses(tmp_path / "loss.csv") == []


def spoil_json(path: Path, how: str) -> None:
    text = path.read_text("utf-8")
    facts = json.loads(text)
    spoilt = {
        "half": text[: len(text) // 2],
        "empty": "",
        "zeros": "\0" * len(text),
        "a list": "[]",
        "no step": json.dumps({name: value for name, value in facts.items() if name != "step"}),
        "another step": json.dumps(facts | {"step": 3}),
        "no text": None,
    }[how]
    path.unlink() if spoilt is None else path.write_text(spoilt, "utf-8")


def spoil_state(path: Path, how: str) -> None:
    data, tensors = path.read_bytes(), load_file(path)
    if how == "gone":
        path.unlink()
    elif how in ("half", "empty", "zeros"):
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[how])
    elif how == "short":
        save_file({name: t[:-1] if t.ndim else t for name, t in tensors.items()}, path)
    elif how == "nan":
        save_file(tensors | {"weights": tensors["weights"] * float("nan")}, path)
    else:
        save_file({name: t for name, t in tensors.items() if name != "weights"}, path)


@pytest.fixture(scope="module")
def two_checkpoints(settings, tmp_path_factory):
    """A run of four steps with checkpoints after 2 and 4 (copy it)."""
    from stillmotion.training import MotionTrainConfig

    folder = tmp_path_factory.mktemp("two") / "run"
    fields = settings | {"output": folder, "max_train_steps": 4, "checkpoint_steps": 2}
    train_motion(MotionTrainConfig.parse(**fields))
    return folder


@pytest.mark.parametrize(
    ("spoil", "how"),
    [(spoil_json, how) for how in ("half", "empty", "zeros", "a list", "no step", "another step", "no text")]
    + [(spoil_state, how) for how in ("gone", "half", "empty", "zeros", "short", "nan", "no weights")],
)
def test_a_spoilt_checkpoint_gives_way_to_the_one_before(two_checkpoints, tmp_path, spoil, how):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000004"
    spoil(newest / ("trainer.json" if spoil is spoil_json else "state.safetensors"), how)
    said = []
    assert checkpoint.read_newest(tmp_path / "run", said.append).step == 2
    assert (
        len(said) == 1 and "step-00000004 is damaged" in said[0] and "goes on from step-00000002" in said[0]
    )
    assert newest.with_name("step-00000004.damaged").is_dir(), "nothing is thrown away"
    assert checkpoint.read_newest(tmp_path / "run", said.append).step == 2 and len(said) == 1


def test_with_a_spoilt_checkpoint_it_ends_as_without(two_checkpoints, configure, tmp_path, capsys):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    spoil_state(tmp_path / "run" / "checkpoints" / "step-00000004" / "state.safetensors", "half")
    (tmp_path / "run" / "loss.csv").write_bytes((tmp_path / "run" / "loss.csv").read_bytes()[:-5] + b"\0\0")
    config = configure("run", max_train_steps=4, checkpoint_steps=2, keep_checkpoints=1)
    assert train_motion(config).finished and "is damaged" in capsys.readouterr().err
    one, other = (checkpoint.read_newest(folder).tensors for folder in (two_checkpoints, config.output))
    assert all((one[name] == other[name]).all() for name in one)
    assert read_losses(two_checkpoints / "loss.csv") == read_losses(config.output / "loss.csv")
    assert [path.name for path in checkpoint.checkpoints(config.output)] == ["step-00000004"]


def test_an_output_that_is_no_folder_is_said(configure, tmp_path):
    (tmp_path / "notes").write_text("mine", "utf-8")
    for output in (tmp_path / "notes", tmp_path / "notes" / "run"):
        with pytest.raises(OutputError, match="notes"):
            train_motion(configure("run", output=output))
    assert (tmp_path / "notes").read_text("utf-8") == "mine"


def test_a_run_that_does_not_begin_leaves_no_folder(configure, tmp_path):
    with pytest.raises(StillmotionError):
        train_motion(configure("run", videos=tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with claim(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_folder_removed_midway_is_said_and_the_weights_are_saved(configure):
    config = configure("run", max_train_steps=4)

    def remove(row):
        if row.step == 2:
            shutil.rmtree(config.output)

    with pytest.raises(TrainingError, match=r"After step 3 .*loss.csv.*step-00000003\. .*same command"):
        train_motion(config, lambda row: remove(row) if row.step < 3 else None)
    assert checkpoint.read_newest(config.output).step == 3


def test_a_folder_that_another_run_took_over_is_not_written_to(configure):
    config = configure("run", max_train_steps=4)

    def take_over(row):
        if row.step == 2:
            shutil.rmtree(config.output)
            config.output.mkdir()
            (config.output / "other").touch()
            (config.output / ".lock").touch()

    with pytest.raises(TrainingError, match="another run has begun in it"):
        train_motion(config, take_over)
    assert not (config.output / "checkpoints").exists() and not (config.output / "motion").exists()


@pytest.mark.parametrize("limit", [100, 30_000])
def test_a_full_disk_ends_in_a_sentence_and_keeps_what_was_good(configure, limit):
    config = configure("run", max_train_steps=2)
    train_motion(config)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(row):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with pytest.raises(
            StillmotionError, match=r"could not go on.*last good checkpoint is .*step-00000002"
        ):
            train_motion(configure("run", max_train_steps=4), fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.read_newest(config.output).step == 2
    assert not list(config.output.rglob("*.part"))
    assert train_motion(configure("run", max_train_steps=4)).finished


def test_a_full_disk_is_no_fault_of_the_clips(configure, tmp_path, monkeypatch):
    @contextmanager
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield path

    monkeypatch.setattr("stillmotion.datasets.latent_cache.durable", full)
    with pytest.raises(OutputError, match=r"Latents cannot be kept in .*\(No space left.*--cache"):
        train_motion(configure("run", cache=tmp_path / "cache"))
    assert not (tmp_path / "run").exists()


def test_a_reader_that_goes_away_makes_the_stream_silent():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        stream = Steadfast(file)
        for _ in range(3):
            stream.write("a sentence\n")
            stream.flush()
        assert file.write("what others write") and stream.isatty() is False


def test_the_second_signal_ends_at_once_and_the_first_leaves_samples_out(capfd):
    with Stop(None) as stop:
        with stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            raise AssertionError("samples went on")
        assert stop.requested and stop.signal == signal.SIGTERM
        assert "Stopping after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is not stop._on_signal


def test_samples_left_out_by_a_signal_are_drawn_when_the_run_goes_on(configure, monkeypatch):
    fields = {"max_train_steps": 3, "validation_steps": 2, "validation_inference_steps": 1}
    config = configure("run", **fields)

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return sample_sheet(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("stillmotion.training.targets.motion.sample_sheet", interrupted)
        outcome = train_motion(config)
    assert outcome.signal in (None, signal.SIGINT)
    assert train_motion(config).finished
    train_motion(configure("whole", **fields))
    one, other = (checkpoint.read_newest(config.output.parent / name).tensors for name in ("run", "whole"))
    assert all((one[name] == other[name]).all() for name in one)


def test_lines_come_by_time_and_sampling_is_no_time_of_steps(tmp_path, monkeypatch, capsys):
    from accelerate import Accelerator

    from stillmotion.training.engine.logger import Step

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Logger(tmp_path, Accelerator(cpu=True), 100, None, False) as logger:
        logger.begin(0, {})
        for step in range(1, 101):
            now[0] += 1
            logger.step(Step(step, 1.0, 0.1, 1.0))
            if step % 50 == 0:
                with logger.aside():
                    now[0] += 1000
    lines = capsys.readouterr().err.splitlines()
    assert 18 <= len(lines) <= 24 and all("1.00 s/step" in line for line in lines)
    assert lines[0].startswith("step 1/100") and lines[-1].startswith("step 100/100")


def start(settings, tmp_path: Path, **fields) -> tuple[subprocess.Popen, Path]:
    plain = {"output": tmp_path / "run", "max_train_steps": 100_000, "checkpoint_steps": 100_000} | fields
    values = {name: str(v) if isinstance(v, Path) else v for name, v in (settings | plain).items()}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), "utf-8")
    process = subprocess.Popen([*RUN, str(tmp_path / "run.yaml")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(read_losses(tmp_path / "run" / "loss.csv")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_after_the_step(settings, tmp_path, number, code):
    process, output = start(settings, tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Stopping after this step" in said and "the same command goes on" in said
    assert checkpoint.read_newest(output).step == read_losses(output / "loss.csv")[-1].step


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_command_in_the_middle_of_a_step(settings, tmp_path, number):
    fields = {"output": tmp_path / "run", "gradient_accumulation_steps": 100_000}  # one step takes hours
    values = {name: str(v) if isinstance(v, Path) else v for name, v in (settings | fields).items()}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), "utf-8")
    command = [sys.executable, "-m", "stillmotion", "train", "motion", "--config", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    lines = iter(process.stderr.readline, "")
    assert any("Stopping after this step; once more stops at once" in line for line in lines)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) == 130
    assert process.stderr.read().strip() == "Stopped."
    assert not checkpoint.checkpoints(tmp_path / "run") and not list((tmp_path / "run").rglob("*.part*"))


@pytest.mark.slow
def test_a_closed_stderr_ends_no_run(settings, tmp_path):
    process, output = start(settings, tmp_path, max_train_steps=300, log_steps=1)
    process.stderr.close()
    assert process.wait(120) == 0
    assert len(read_losses(output / "loss.csv")) == 300 and (output / "motion").is_dir()
