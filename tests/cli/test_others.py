"""redo, sheet, decode and concepts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stillmotion.video import Clip


@pytest.mark.parametrize("extension", ["webp", "gif"])
def test_redo_makes_the_same_clip_again(extension, say, bundled) -> None:
    assert say("animate", "a rocket", "-o", f"r.{extension}", "--quality", 100).code == 0
    said = say("redo", f"r.{extension}", "--quality", 100)
    assert said.code == 0, said.err
    assert said.out.startswith(f"r-redo.{extension}: 3 frames")
    first, again = Clip.load(f"r.{extension}"), Clip.load(f"r-redo.{extension}")
    assert np.array_equal(first.frames, again.frames)
    assert first.request == again.request


def test_redo_changes_what_it_is_told(say, bundled) -> None:
    assert say("animate", "a rocket", "-o", "r.gif", "--seed", 1, "--frames", 4).code == 0
    said = say("redo", "r.gif", "--seed", 8, "--prompt", "an apple", "-o", "apple.gif")
    assert said.code == 0, said.err
    request = Clip.load("apple.gif").request
    assert (request.seed, request.prompt, request.frames) == (8, "an apple", 4)


def test_redo_needs_a_request(say, tmp_path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "foreign.gif")
    said = say("redo", "foreign.gif")
    assert said.code == 2
    assert "foreign.gif carries no request" in said.err
    assert say("redo", "missing.gif").code == 2


def test_sheet(say, tmp_path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    Clip(frames, 8).save(tmp_path / "clip.gif")
    said = say("sheet", "clip.gif", "--columns", 3)
    assert (said.code, said.out) == (0, "clip-sheet.png: 6 frames of clip.gif\n")
    image = Image.open("clip-sheet.png")
    assert 24 <= image.width < 48 and 16 <= image.height < 32
    assert say("sheet", "clip.gif", "-o", "clip-sheet.png").code == 2
    assert say("sheet", "clip.gif", "-o", "clip-sheet.png", "--force").code == 0
    assert "must end in .png" in say("sheet", "clip.gif", "-o", "x.gif").err


def test_concepts_are_listed_and_searched(say, bundled) -> None:
    said = say("concepts")
    assert said.code == 0
    assert "travel: rocket*" in said.out
    assert "food: red apple" in said.out
    assert "2 concepts; styles: 3d render" in said.out
    assert say("concepts", "fruit").out == "red apple  (fruit)\n"
    assert say("concepts", "--styles").out == "3d render\n"
    nothing = say("concepts", "quantum computer")
    assert nothing.code == 2
    assert "nothing like 'quantum computer'" in nothing.err


def test_models_without_a_list_say_so(say, sd15_folder) -> None:
    said = say("concepts", "--base", sd15_folder)
    assert said.code == 2
    assert "has no list of concepts" in said.err


def test_decode_wants_latents(say, tmp_path, bundled) -> None:
    (tmp_path / "x.gif.latents.safetensors").write_text("not latents")
    said = say("decode", "x.gif.latents.safetensors")
    assert said.code == 2
    assert "does not hold the latents" in said.err
    assert "give it with --output" in say("decode", "x.bin").err
