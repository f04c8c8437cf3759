"""`stillmotion animate` with a tiny model: files appear, are refused early, and carry what made them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from loras import motion_parts
from PIL import Image
from tiny import tiny_motion

from stillmotion.checkpoints.lora_model import Lora
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.output_file import name_of
from stillmotion.video import Clip


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading anything fails the test: what is refused must be refused before."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Animator, "load", load)


def test_a_prompt_becomes_a_file_named_after_it(say, bundled, tmp_path) -> None:
    said = say("animate", "A rocket, 3D render!", "--seed", 5)
    assert said.code == 0, said.err
    assert said.out.startswith("a-rocket-3d-render.gif: 3 frames of 16x16, 0.4 s, seed 5, made in ")
    assert said.err == ""
    assert [file.name for file in tmp_path.iterdir()] == ["a-rocket-3d-render.gif"]
    assert say("animate", "A rocket, 3D render!").out.startswith("a-rocket-3d-render-2.gif: ")


def test_flags_reach_the_clip(say, sd15_folder, motion_folder) -> None:
    flags = "--frames 5 --width 24 --steps 3 --guidance 2 --scheduler Euler-A --fps 12 --motion-scale 0.5"
    said = say(
        *("animate", "a cat", "-o", "out/cat.webp", "--quality", 100, "--scale", 2, "--sheet", "cat.png"),
        *("--base", sd15_folder, "--motion", motion_folder, "--dtype", "fp32", "--negative-prompt", "dog"),
        *flags.split(),
    )
    assert said.code == 0, said.err
    clip = Clip.load("out/cat.webp")
    assert clip.frames.shape == (5, 32, 48, 3)
    asked = clip.request
    assert (asked.frames, asked.width, asked.num_inference_steps, asked.guidance_scale) == (5, 24, 3, 2.0)
    assert (asked.scheduler, asked.fps, asked.motion_scale) == ("euler_a", 12.0, 0.5)
    assert (asked.negative_prompt, asked.dtype, asked.base) == ("dog", "float32", str(sd15_folder))
    assert Image.open("cat.png").width >= 3 * 48


def test_several_seeds_side_by_side(say, bundled, tmp_path) -> None:
    said = say("animate", "a rocket", "-n", 3, "--seed", 7, "-o", "r.webp", "--quality", 100)
    assert said.code == 0, said.err
    names = ["r-seed7.webp", "r-seed8.webp", "r-seed9.webp", "r.webp"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    singles = [Clip.load(name) for name in names[:3]]
    assert [clip.request.seed for clip in singles] == [7, 8, 9]
    assert not np.array_equal(singles[0].frames, singles[1].frames)
    together = Clip.load("r.webp")
    assert together.request is None  # three requests made it, not one
    assert together.width >= 32
    alone = say("animate", "a rocket", "--seed", 8, "-o", "alone.webp", "--quality", 100)
    assert alone.code == 0
    assert np.array_equal(Clip.load("alone.webp").frames, singles[1].frames)


def test_one_frame_is_a_still(say, bundled) -> None:
    said = say("animate", "a rocket", "--frames", 1, "-o", "still.png")
    assert said.code == 0, said.err
    assert said.out.startswith("still.png: a still of 16x16, seed ")
    assert Image.open("still.png").size == (16, 16)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-o", "taken.gif"], "taken.gif exists"),
        (["-o", "x.gif", "--sheet", "taken.png"], "taken.png exists"),
        (["-o", "x.gif", "--sheet", "x.jpg"], "must end in .png"),
        (["-o", "x.jif"], "unknown extension .jif"),
        (["-o", "x.png", "--frames", "4"], "is a still"),
        (["-o", "left.gif"], "`stillmotion decode left.gif.latents.safetensors`"),
        (["-n", "2", "--seed", "1", "-o", "r.gif"], "r-seed2.gif exists"),
        (["--frames", "0"], "frames is 0, but"),
        (["--scheduler", "unpic"], "give --scheduler unipc"),
        (["--lora", "style.safetensors:much"], "no file"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(args, words, say, request, tmp_path) -> None:
    request.getfixturevalue("bundled" if "--lora" in args else "no_model")
    for name in ("taken.gif", "taken.png", "left.gif.latents.safetensors", "r-seed2.gif"):
        (tmp_path / name).write_text("precious")
    said = say("animate", "a rocket", *args)
    assert said.code == 2, said
    assert words in said.err
    assert {file.read_text() for file in tmp_path.iterdir()} == {"precious"}


def test_force_overwrites(say, bundled, tmp_path) -> None:
    (tmp_path / "r.gif").write_text("old")
    assert say("animate", "a rocket", "-o", "r.gif", "--force").code == 0
    assert len(Clip.load("r.gif")) == 3


def test_a_still_is_refused_for_a_model_whose_clips_have_frames(say, bundled, tmp_path) -> None:
    said = say("animate", "a rocket", "-o", "r.png")
    assert (said.code, list(tmp_path.iterdir())) == (2, [])
    assert "3 frames" in said.err


def test_unknown_words_get_a_hint_and_a_clip(say, bundled) -> None:
    said = say("animate", "a rockett", "-o", "r.gif")
    assert said.code == 0
    assert "Note: This small model has learned no word of 'a rockett'; near to it: rocket" in said.err


def test_a_crash_while_decoding_keeps_what_was_sampled(say, bundled, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Animator, "decode", lambda *args: (_ for _ in ()).throw(RuntimeError("boom")))
        said = say("animate", "a rocket", "-o", "r.webp", "--seed", 3, "--quality", 100)
    assert said.code == 1
    assert "`stillmotion decode r.webp.latents.safetensors` goes on from there" in said.err
    assert [file.name for file in tmp_path.iterdir()] == ["r.webp.latents.safetensors"]
    said = say("decode", "r.webp.latents.safetensors", "--quality", 100)
    assert said.code == 0, said.err
    assert say("animate", "a rocket", "-o", "whole.webp", "--seed", 3, "--quality", 100).code == 0
    assert np.array_equal(Clip.load("r.webp").frames, Clip.load("whole.webp").frames)
    assert Clip.load("r.webp").request == Clip.load("whole.webp").request


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("a.safetensors", {"a.safetensors": 1.0}),
        ("a.safetensors:0.8", {"a.safetensors": 0.8}),
        ("a.safetensors=0.8", {"a.safetensors": 0.8}),
        ("C:\\loras\\a.safetensors", {"C:\\loras\\a.safetensors": 1.0}),
        ("C:\\loras\\a.safetensors:1", {"C:\\loras\\a.safetensors": 1.0}),
        ("C:\\loras\\a.safetensors=0:0,15:1", {"C:\\loras\\a.safetensors": {"0": 0.0, "15": 1.0}}),
        ("a.safetensors=unet:0.8,text:0.5", {"a.safetensors": {"unet": 0.8, "text": 0.5}}),
        ("a=b.safetensors:0.5", {"a=b.safetensors": 0.5}),
    ],
)
def test_weights_of_loras_after_a_colon(given, fields) -> None:
    from stillmotion.cli.options import given as fields_of
    from stillmotion.request import Request

    assert Request.parse(prompt="x", **fields_of({"loras": (given,)})).loras == fields
    assert Request.parse(prompt="x", **fields_of({"motion_loras": (given,)})).motion_loras == fields


def test_a_motion_lora_under_the_other_flag_is_applied_and_said(say, bundled, tmp_path, monkeypatch) -> None:
    Lora(motion_parts(tiny_motion())).save(tmp_path / "pan.safetensors")
    common = ("--seed", 3, "--quality", 100)
    said = say("animate", "a rocket", "--lora", "pan.safetensors:0.5", "-o", "a.webp", *common)
    assert said.code == 0, said.err
    assert (
        "Note: pan.safetensors is a motion LoRA (it changes a motion module): it is applied to the"
        in said.err
    )
    with monkeypatch.context() as patch:
        patch.setattr(Animator, "decode", lambda *args: (_ for _ in ()).throw(RuntimeError("boom")))
        assert say(
            "animate", "a rocket", "--motion-lora", "pan.safetensors=0.5", "-o", "b.webp", *common
        ).code
    assert say("decode", "b.webp.latents.safetensors", "--quality", 100).code == 0
    assert np.array_equal(Clip.load("a.webp").frames, Clip.load("b.webp").frames)
    assert Clip.load("b.webp").request.motion_loras == {"pan.safetensors": 0.5}
    assert say("animate", "a rocket", "-o", "c.webp", *common).code == 0
    assert not np.array_equal(Clip.load("a.webp").frames, Clip.load("c.webp").frames)


def test_quiet_prints_only_the_files(say, bundled) -> None:
    said = say("animate", "a rockett", "-n", 2, "--seed", 1, "-o", "r.webp", "--quiet")
    assert (said.out, said.err) == ("r-seed1.webp\nr-seed2.webp\nr.webp\n", "")


def test_names_of_prompts() -> None:
    assert str(name_of("  ")) == "clip.gif"
    assert str(name_of("../etc/passwd")) == "etc-passwd.gif"
    assert len(str(name_of("very " * 50))) < 70


def test_ctrl_c_leaves_nothing(tmp_path, sd15_folder, motion_folder) -> None:
    """A real process, a real terminal, a real SIGINT while it draws."""
    terminal, its_side = pty.openpty()
    # a job behind & would ignore it
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from stillmotion.cli import main; main()"
    flags = f"--base {sd15_folder} --motion {motion_folder} --steps 900 --frames 16 -o r.gif"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "animate", "a rocket", *flags.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=its_side,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(its_side)
    shown = b""
    deadline = time.monotonic() + 120
    while b"drawing" not in shown and time.monotonic() < deadline:
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    while process.poll() is None and time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
    assert process.wait(30) == 130, shown.decode()
    assert b"Stopped." in shown
    assert b"Traceback" not in shown
    assert list(tmp_path.iterdir()) == []
