"""`--embedding` and `--vae`: in the clip, in its request, and again with `redo`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_vae

from stillmotion.video import Clip

SMALL = ("--frames", 2, "--steps", 2, "--seed", 1)


@pytest.fixture
def toy(tmp_path: Path) -> str:
    save_file({"<toy>": torch.ones(2, 32)}, tmp_path / "toy.safetensors")
    return "toy.safetensors"


def test_a_word_is_recorded_and_used_again(say, bundled, toy) -> None:
    code, _, err = say("animate", "a mouse", "-o", "one.gif", "--embedding", f"{toy}=mouse", *SMALL)
    assert code == 0 and "Note: The textual inversion" not in err
    assert Clip.load("one.gif").request.embeddings == {toy: "mouse"}
    assert say("redo", "one.gif", "-o", "two.gif")[0] == 0
    assert Path("one.gif").read_bytes() == Path("two.gif").read_bytes()
    assert say("animate", "a mouse", "-o", "plain.gif", *SMALL)[0] == 0
    assert (Clip.load("plain.gif").frames != Clip.load("one.gif").frames).any()


def test_a_word_that_is_not_said_gets_a_note(say, bundled, toy) -> None:
    _, _, err = say("animate", "a rocket", "-o", "one.gif", "--embedding", toy, *SMALL)
    assert "Note: The textual inversion '<toy>' was loaded, but stands neither in the prompt" in err


def test_another_vae_is_recorded_and_used_again(say, bundled) -> None:
    tiny_vae(seed=7).save_pretrained("other")
    assert say("animate", "a rocket", "-o", "one.gif", "--vae", "other", *SMALL)[0] == 0
    assert Clip.load("one.gif").request.vae == "other"
    assert say("redo", "one.gif", "-o", "two.gif")[0] == 0
    assert Path("one.gif").read_bytes() == Path("two.gif").read_bytes()
    code, _, err = say("animate", "a rocket", "-o", "three.gif", "--vae", "one.gif", *SMALL)
    assert code == 2 and "one.gif is an animation (GIF), not weights" in err
