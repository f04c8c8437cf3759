"""Flags of conditions: written from the row, kept in clips, asked for before they are opened."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import dummy_condition
import numpy as np
import pytest
from dummy_condition import Tint

import stillmotion.cli
from stillmotion.request import Request
from stillmotion.sampling.conditions import CONDITIONS
from stillmotion.video import Clip


@pytest.fixture
def typed(say, bundled, monkeypatch: pytest.MonkeyPatch):
    """The command line with the flag of the dummy: commands read the rows when they are imported."""
    monkeypatch.setitem(CONDITIONS, *dummy_condition.ROW)
    for name in ("animate", "redo"):
        before = import_module(f"stillmotion.cli.{name}")
        monkeypatch.setattr(stillmotion.cli, name, before)
        monkeypatch.delitem(sys.modules, before.__name__)
    Path("hints").mkdir()
    return say


def test_typed_and_made_again(typed) -> None:
    shown = " ".join(typed("animate", "--help").out.split())
    assert "--tint" in shown and "Make the clip lighter, as FILE:HINTS,amount=1,from=0; may be given" in shown
    settings = ("--seed", 1, "--steps", 1, "--frames", 2)
    assert typed("animate", "x", *settings, "-o", "plain.webp", "--quality", 100).code == 0
    flags = ("--tint", "a.ckpt:hints,amount=0.5", "-o", "a.webp", "--quality", 100)
    said = typed("animate", "x", *settings, *flags)
    assert said.code == 0, said.err
    clip = Clip.load("a.webp")
    assert clip.request.conditions == (Tint("a.ckpt", "hints", amount=0.5),)
    assert typed("redo", "a.webp", "-o", "b.webp", "--quality", 100).code == 0, "opened here before"
    assert np.array_equal(Clip.load("b.webp").frames, clip.frames)
    assert typed("redo", "a.webp", "--tint", "none", "-o", "c.webp", "--quality", 100).code == 0
    assert np.array_equal(Clip.load("c.webp").frames, Clip.load("plain.webp").frames)
    assert "tint" in typed("info", "a.webp").out
    assert typed("animate", "x", "--tint", "a.ckpt").err.startswith("Error: hints of --tint is missing")


def test_what_a_stranger_names_in_conditions_is_asked_for(typed) -> None:
    Path("secret.txt").write_text("hunter2")
    for file, hints, words in (
        ("secret.txt", "hints", ["tint weights secret.txt", "tint images hints"]),
        ("a.ckpt", "secret.txt", ["tint images secret.txt"]),
    ):
        request = Request(prompt="x", frames=2, num_inference_steps=1, tint={"file": file, "hints": hints})
        Clip(np.zeros((2, 16, 16, 3), np.uint8), 8.0, request).save("s.gif", overwrite=True)
        said = typed("redo", "s.gif", "-o", "o.gif")
        shown = " ".join(said.err.split())
        assert said.code == 2 and all(word in shown for word in (*words, "--trust")), said.err
        said = typed("redo", "s.gif", "-o", "o.gif", "--trust")
        assert said.code == 2 and "secret.txt is no file of" in said.err and "hunter2" not in said.err
        assert typed("redo", "s.gif", "-o", "o.gif", "-f", "--tint", "none").code == 0
