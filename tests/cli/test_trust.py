"""Clips and latents of strangers: nothing that only they name is opened before it was shown."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_vae

from stillmotion.request import Request
from stillmotion.sampling.latents import Latents
from stillmotion.video import Clip

SMALL = ("--frames", 2, "--steps", 1, "--seed", 1)
OPENED: list[str] = []


def _hear(event: str, args: tuple) -> None:
    if event == "open" and isinstance(args[0], (str, bytes)) and ".dist-info" not in str(args[0]):
        OPENED.append(os.fsdecode(args[0]))


sys.addaudithook(_hear)


def stranger(**fields: object) -> str:
    request = Request.parse(prompt="x", **fields)
    Clip(np.zeros((2, 16, 16, 3), np.uint8), 8.0, request).save("s.gif", overwrite=True)
    return "s.gif"


@pytest.mark.parametrize(
    "fields",
    [
        {"loras": {"secret.txt": 1.0}},
        {"motion_loras": {"secret.txt": 1.0}},
        {"embeddings": {"secret.txt": "x"}},
        {"vae": "secret.txt"},
        {"motion": "secret.txt"},
        {"base": "secret.txt"},
        {"base": "attacker/model"},
    ],
)
@pytest.mark.parametrize("trust", [(), ("--trust",)])
def test_redo_opens_nothing_that_is_not_asked_for(say, bundled, fields, trust) -> None:
    Path("secret.txt").write_text("hunter2\n")
    clip = stranger(**fields)
    OPENED.clear()
    said = say("redo", clip, "-o", "o.gif", *trust)
    assert said.code == 2 and "hunter2" not in said.err + said.out
    assert not any("secret.txt" in name for name in OPENED)
    if not trust:
        assert ("secret.txt" in said.err or "attacker/model" in said.err) and "--trust" in said.err
        assert not any("hub" in name for name in OPENED)


def test_escapes_in_names_are_shown(say, bundled) -> None:
    said = say("redo", stranger(base="\x1b]0;owned\x07nope"), "-o", "o.gif")
    assert said.code == 2 and "\\x1b]0;owned\\x07nope" in said.err and "\x1b" not in said.err


def test_a_name_that_comes_with_stillmotion_is_taken_from_there_or_asked_for(say, bundled) -> None:
    clip = stranger(base="emoji", frames=2, num_inference_steps=1)
    assert say("redo", clip, "-o", "o.gif").code == 0
    Path("emoji").mkdir()
    assert "emoji" in say("redo", clip, "-o", "p.gif").err


def test_what_the_user_names_himself_needs_no_trust(say, bundled) -> None:
    tiny_vae(seed=7).save_pretrained("other")
    clip = stranger(vae="elsewhere", frames=2, num_inference_steps=1)
    assert say("redo", clip, "-o", "o.gif").code == 2
    assert say("redo", clip, "-o", "o.gif", "--vae", "other").code == 0
    assert say("redo", stranger(vae="other", frames=2, num_inference_steps=1), "-o", "p.gif").code == 0
    same = stranger(vae=str(Path("other").resolve()), frames=2, num_inference_steps=1)
    assert say("redo", same, "-o", "q.gif").code == 0


def test_trust_opens_models(say, bundled) -> None:
    tiny_vae(seed=7).save_pretrained("other")
    clip = stranger(vae="other", frames=2, num_inference_steps=1)
    assert say("redo", clip, "-o", "o.gif").code == 2
    assert say("redo", clip, "-o", "o.gif", "--trust").code == 0


def test_decode_asks_too(say, bundled) -> None:
    request = Request(prompt="x", base="theirs", frames=2, fps=8.0, loras={"secret.txt": 1.0})
    Latents(torch.zeros(2, 4, 8, 8), request).save("a.gif.latents.safetensors")
    said = say("decode", "a.gif.latents.safetensors")
    assert said.code == 2 and "theirs" in said.err and "secret.txt" not in said.err
    Latents(torch.zeros(2, 4, 8, 8), request.replace(base="emoji")).save("b.gif.latents.safetensors")
    assert say("decode", "b.gif.latents.safetensors").code == 0


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 130), ("", 130)])
def test_in_a_terminal_the_user_is_asked(say, bundled, monkeypatch, answer: str, code: int) -> None:
    tiny_vae(seed=7).save_pretrained("other")
    clip = stranger(vae="other", frames=2, num_inference_steps=1)
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    said = say("redo", clip, "-o", "o.gif")
    assert said.code == code and "other" in said.err
