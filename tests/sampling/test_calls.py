"""Animator as a diffusers user calls it: lists, devices, generators, callbacks, bars."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import tiny_motion, tiny_pipeline

from stillmotion.errors import RequestError
from stillmotion.request import Request
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.calls import seed_of
from stillmotion.sampling.progress import progress_bar

FEW = {"frames": 2, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def tiny() -> Animator:
    return Animator(tiny_pipeline("sd15", 0), tiny_motion())


def test_a_list_gives_a_list(tiny: Animator) -> None:
    clips = tiny.animate(["a rocket", Request(prompt="a cat", frames=3)], seed=7, num_inference_steps=1)
    assert [clip.request.prompt for clip in clips] == ["a rocket", "a cat"]
    assert [clip.request.seed for clip in clips] == [7, 7] and len(clips[1]) == 3
    alone = tiny("a rocket", seed=7, num_inference_steps=1)
    assert np.array_equal(clips[0].frames, alone.frames)
    assert [clip.request.seed for clip in tiny.animate(("a", "b"), seed=[1, 2], **FEW)] == [1, 2]
    assert tiny.animate([]) == []
    with pytest.raises(RequestError, match="seed is a list of 1, but there are 2 prompts"):
        tiny.animate(["a", "b"], seed=[1], **FEW)
    with pytest.raises(RequestError, match="seed is a list of 2, but there are 1 prompts"):
        tiny.animate("a", seed=[1, 2], **FEW)


def test_the_words_of_diffusers_are_understood(tiny: Animator) -> None:
    generator = torch.Generator().manual_seed(7)
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append((pipe is tiny.pipeline, step, float(timestep) > 0))
        return {"latents": tensors["latents"] * 0} if step == 1 else tensors

    one = tiny.animate("a", num_frames=3, generator=generator, num_inference_steps=1)
    two = tiny.animate("a", num_frames=3, generator=generator, num_inference_steps=1)
    assert len(one) == 3 and one.request.seed == 7 and two.request.seed != 7
    assert np.array_equal(one.frames, tiny.animate("a", frames=3, seed=7, num_inference_steps=1).frames)
    black = tiny.animate("a", seed=7, frames=2, num_inference_steps=2, callback_on_step_end=callback)
    assert steps == [(True, 0, True), (True, 1, True)]
    assert not np.array_equal(black.frames, tiny.animate("a", seed=7, frames=2, num_inference_steps=2).frames)
    assert np.array_equal(black.frames[0], black.frames[1])  # all latents were 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_frames": 2, "frames": 3}, "num_frames and frames mean the same"),
        ({"generator": torch.Generator(), "seed": 0}, "generator and seed mean the same"),
        ({"generator": 7}, "must be a torch.Generator; a number is `seed=7`"),
        ({"num_frames": 0}, "frames is 0"),
        ({"steps": 3}, "did you mean num_inference_steps"),
    ],
)
def test_what_is_wrong_is_a_sentence(tiny: Animator, fields: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        tiny.animate("a", **fields)


def test_a_generator_stands_for_seeds_that_come_again() -> None:
    first, second = (torch.Generator().manual_seed(2**63 + 5) for _ in range(2))
    assert [seed_of(first) for _ in range(3)] == [seed_of(second) for _ in range(3)]
    assert seed_of(torch.Generator().manual_seed(3)) == 3


def test_it_moves_and_says_where_it_is() -> None:
    animator = Animator(tiny_pipeline("sd15", 0), tiny_motion())
    assert animator.device == torch.device("cpu")
    assert animator.to("cpu") is animator and animator.to(torch.bfloat16) is animator
    assert animator.pipeline.unet.dtype == animator.motion.parameters().__next__().dtype == torch.bfloat16
    assert animator.pipeline.vae.dtype == torch.float32
    assert animator.animate("a", **FEW).request.dtype == "bfloat16"
    assert animator.to("fp32").pipeline.text_encoder.dtype == torch.float32
    with pytest.raises(RequestError, match="device is 'cuda:77'"):
        animator.to("cuda:77")


def test_bars_are_for_who_is_watching(tiny: Animator, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.animate("a", **FEW)
    assert capsys.readouterr() == ("", "")
    tiny.animate("a", progress=True, **FEW)
    assert "sampling: 100%" in capsys.readouterr().err
    told = []
    tiny.animate("a", lambda *step: told.append(step), progress=True, **FEW)
    assert told and capsys.readouterr().err == ""


def test_in_a_terminal_a_bar_is_drawn_and_none_in_a_pipe() -> None:
    code = (
        "import sys; from stillmotion.sampling.progress import progress_bar\n"
        "if sys.argv[1] == 'tty': sys.stderr.isatty = lambda: True\n"
        "with progress_bar() as bar:\n"
        "    for n in range(3): bar('sampling', n, 2)"
    )
    for kind, shown in (("tty", True), ("pipe", False)):
        said = subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=True)
        assert ("2/2" in said.stderr) is shown and said.stdout == ""


def test_a_notebook_shows_the_bar(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class IPython:
        @staticmethod
        def get_ipython():
            return type("Shell", (), {"kernel": None})()

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    with progress_bar() as bar:
        bar("sampling", 1, 2)
    assert "1/2" in "".join(capsys.readouterr())
