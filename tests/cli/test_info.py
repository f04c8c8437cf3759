"""`stillmotion info`: the request in a file, in words and as JSON."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillmotion.request import Request
from stillmotion.sampling.latents import Latents
from stillmotion.video import Clip

REQUEST = Request(prompt="a rocket", frames=2, fps=8, seed=7)


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x", "x.gif.latents.safetensors"])
def test_the_request_is_shown(say, tmp_path, name: str) -> None:
    if name.endswith("safetensors"):
        Latents(torch.zeros(2, 4, 2, 2), REQUEST).save(tmp_path / name)
    else:
        Clip(np.zeros((2, 16, 16, 3), np.uint8), 8, REQUEST).save(tmp_path / name)
    assert "prompt: a rocket\n" in say("info", name).out and "seed: 7\n" in say("info", name).out
    assert Request.from_json(say("info", name, "--json").out) == REQUEST


def test_a_file_without_a_request_is_a_sentence(say, tmp_path) -> None:
    Clip(np.zeros((2, 16, 16, 3), np.uint8), 8).save(tmp_path / "x.gif")
    assert say("info", "x.gif").code == 2
