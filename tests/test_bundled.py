"""The bundled model: small enough, in plain diffusers too, and what README promises of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, StableDiffusionPipeline
from safetensors import safe_open
from stillmotion_emoji import FOLDER

import stillmotion as sm
from stillmotion.metrics.camera_motion import camera_of

WEIGHTS = sorted(FOLDER.rglob("*.safetensors"))


def test_weights_are_few_megabytes_of_fp16():
    assert sum(file.stat().st_size for file in WEIGHTS if file.parent.name != "loras") < 120e6
    assert sum(file.stat().st_size for file in WEIGHTS) < 150e6
    for file in WEIGHTS:
        with safe_open(file, "pt") as tensors:
            assert {str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()} <= {"F16", "I64"}  # noqa: SIM118
    assert not [file for file in FOLDER.rglob("*") if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_plain_diffusers_loads_base_and_motion():
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    assert len(pipe.tokenizer) == 49408
    assert pipe.tokenizer("a photo of a dog").input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]
    adapter = MotionAdapter.from_pretrained(FOLDER / "motion")
    assert adapter.config.use_motion_mid_block


def test_every_concept_fits_into_a_prompt():
    known = json.loads((FOLDER / "concepts.json").read_text(encoding="utf-8"))
    assert len(known["concepts"]) >= 200 and "3d render" in known["styles"]
    assert {"rocket", "red apple", "guitar", "house"} <= {row["name"] for row in known["concepts"]}


@pytest.fixture(scope="module")
def animator():
    return sm.Animator.load()


def test_a_rocket_is_red_on_white_and_moves(animator):
    clip = animator.animate("a rocket, 3d render style", seed=7, num_inference_steps=8, frames=8)
    assert clip.frames.shape == (8, 128, 128, 3)
    corners = clip.frames[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
    assert corners.mean() > 225, "the background of the training images is white"
    steps = np.abs(np.diff(clip.frames.astype(float), axis=0)).mean()
    across = np.abs(clip.frames[0].astype(float) - clip.frames[4]).mean()
    assert 0.2 < steps < 25 and across > steps / 2


@torch.no_grad()
def misread(pipe, image, prompt, timestep=200):
    """How far off the base is about an image (h, w, 3) uint8 in plain sight behind a little noise."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = pipe.vae.encode(pixels).latent_dist.mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    text, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    when = torch.tensor([timestep])
    said = pipe.unet(pipe.scheduler.add_noise(latents, noise, when), when, text).sample
    return (said - pipe.scheduler.get_velocity(latents, noise, when)).square().mean().item()


def test_the_base_leaves_things_where_they_stand(animator):
    prompt = "red apple, flat style"
    still = animator.animate(prompt, seed=3, frames=1).frames[0]
    pipe = sm.Animator.load(dtype="float32").pipeline
    aside = misread(pipe, np.roll(still, 6, axis=1), prompt)
    assert aside < 3 * misread(pipe, still, prompt), "it pulls them back, and motion can do little against it"


def test_motion_takes_part(animator):
    options = {"seed": 7, "num_inference_steps": 6, "frames": 8}
    moving = animator.animate("a dog face, flat style", **options).frames.astype(float)
    without = animator.animate("a dog face, flat style", motion_scale=0.0, **options).frames.astype(float)
    assert np.abs(moving - without).mean() > 0.5


def test_neighbouring_frames_are_closer_than_distant_ones(animator):
    options = {"seed": 7, "num_inference_steps": 8, "frames": 8}
    clip = animator.animate("a dog face, flat style", **options)
    frames = clip.frames.astype(float)
    assert np.abs(frames[1:] - frames[:-1]).mean() < 0.8 * np.abs(frames[4:] - frames[:-4]).mean()
    assert clip.request.noise_alpha == 1.5, "the noise that its motion was trained with"


STILL = {"seed": 3, "frames": 1, "num_inference_steps": 12}


def colourfulness(image):
    return float((image.max(-1).astype(int) - image.min(-1)).mean())


def test_the_style_lora_takes_the_colours_out_by_its_name():
    plain, styled = sm.Animator.load(), sm.Animator.load(loras={"high-contrast": 1.0})
    colours = plain.animate("a dog face, flat style", **STILL).frames
    drawn = styled.animate("dog face, high contrast style", **STILL).frames
    assert colourfulness(drawn) < 0.35 * colourfulness(colours)
    assert drawn.min() < 40, "its lines are black"


def test_the_subject_is_orange_and_other_things_are_not():
    taught = sm.Animator.load(loras={"subject": 1.0})
    cat = taught.animate("sks cat face", **STILL).frames[0]
    red, green, blue = cat[40:100, 40:90].reshape(-1, 3).mean(0)
    assert red > 200 and 100 < green < 190 and blue < 90
    drawn = [a.animate("rocket, 3d render style", **STILL).frames for a in (taught, sm.Animator.load())]
    change = np.abs(drawn[0].astype(float) - drawn[1]).mean()
    assert change < 20, "it has taken over what it was not asked for"


MOVING = {"seed": 3, "num_inference_steps": 6}


@pytest.mark.parametrize(
    "move", ["pan-right", "tilt-up", "zoom-in", "zoom-out", "roll-clockwise", "roll-anticlockwise"]
)
def test_the_camera_moves_by_its_name(move):
    filmed = sm.Animator.load(motion_loras={move: 1.0}).animate("castle, 3d render style", **MOVING)
    assert camera_of(filmed.frames).dominant == move


def test_a_camera_at_weight_0_does_nothing(animator):
    off = sm.Animator.load(motion_loras={"zoom-out": 0.0}).animate("castle, 3d render style", **MOVING)
    assert np.array_equal(off.frames, animator.animate("castle, 3d render style", **MOVING).frames)


@pytest.mark.parametrize("name", ["high-contrast", "noto-v1", "subject"])
def test_plain_diffusers_loads_the_loras(name):
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(FOLDER / "loras", weight_name=f"{name}.safetensors")
    ask = {"prompt": "sks cat face", "num_inference_steps": 3, "output_type": "np"}
    theirs = pipe(**ask, generator=torch.Generator().manual_seed(0)).images
    ours = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    ours.set_progress_bar_config(disable=True)
    with sm.attach_lora(ours, name):
        drawn = ours(**ask, generator=torch.Generator().manual_seed(0)).images
    assert np.abs(theirs - drawn).max() < 1e-3
    bare = ours(**ask, generator=torch.Generator().manual_seed(0)).images
    assert np.abs(theirs - bare).max() > 1e-2


def test_the_block_of_the_readme_as_typed() -> None:
    """The bundled folder in plain diffusers, no dtype given; two frames and steps in place of 16 and 50."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = next(part.split("```")[0] for part in readme.split("```python\n")[1:] if "sm.attach(" in part)
    block = block.replace("path/to/model", FOLDER.as_posix()).replace(
        "v3_sd15_mm.ckpt", (FOLDER / "motion").as_posix()
    )
    block = block.replace("=16", "=2").replace('runs",', 'runs", num_inference_steps=2, ')
    typed: dict[str, object] = {}
    exec(block, typed)
    assert len(typed["frames"]) == 2 and np.asarray(typed["frames"][0]).std() > 1
