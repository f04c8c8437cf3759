"""ControlNet as a condition: the pipelines of diffusers agree, every form of hints, and the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attachments.test_control_attachment import peer
from controlnets import save_controlnet, tiny_controlnet
from diffusers import ControlNetModel
from PIL import Image
from tiny import SIZE, tiny_motion, tiny_pipeline

import stillmotion as sm
from stillmotion.cli import run
from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.diffusion.schedulers import make_scheduler

FRAMES = 3
SETTINGS = {"frames": FRAMES, "seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}


def pixels(frames: int = FRAMES, width: int = SIZE, height: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def folder(path: Path, frames: np.ndarray) -> Path:
    path.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number:03}.png")
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return save_controlnet(tiny_controlnet(), tmp_path / "depth.safetensors", "control_model.")


@pytest.fixture(scope="module")
def tiny() -> sm.Animator:
    return sm.Animator(tiny_pipeline(), tiny_motion())


def sampled(animator: sm.Animator, *controls: sm.Condition, **fields) -> torch.Tensor:
    request = animator.request("a red rocket", controls=controls, **SETTINGS | fields)
    return animator.sample(request).tensor


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (33, 20)])
def test_latents_are_those_of_diffusers(kind, size, tmp_path) -> None:
    """Two nets, each with its scale and part of the steps; hints of another size are resized alike."""
    animator = sm.Animator(tiny_pipeline(kind), tiny_motion())
    nets = [tiny_controlnet(kind, 1), tiny_controlnet(kind, 2)]
    hints = [pixels(FRAMES, *size, 1), pixels(1, *size, 2)]
    controls = [
        sm.ControlNet(
            save_controlnet(each, tmp_path / f"{number}.safetensors"),
            folder(tmp_path / str(number), frames),
            scale=scale,
            start=start,
            end=end,
        )
        for number, (each, frames, scale, start, end) in enumerate(
            zip(nets, hints, (0.7, 0.4), (0.0, 0.3), (0.8, 1.0), strict=True)
        )
    ]
    ours = sampled(animator, *controls)
    pipeline = animator.pipeline
    schedule = animator.family.schedule.over_base(NoiseSchedule.from_config(pipeline.scheduler.config))
    theirs = peer(pipeline, nets)
    theirs.scheduler = make_scheduler("ddim", schedule)
    images = [  # diffusers' own resizing; several nets take a list for each as tensors only
        theirs.control_image_processor.preprocess([*map(Image.fromarray, frames)], SIZE, SIZE)
        for frames in (hints[0], hints[1].repeat(FRAMES, 0))
    ]
    with sm.attach(pipeline, motion=animator.motion, frames=FRAMES):
        expected = theirs(
            ["a red rocket"] * FRAMES,
            image=images,
            height=SIZE,
            width=SIZE,
            num_inference_steps=4,
            guidance_scale=2.0,
            latents=torch.randn(FRAMES, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(3)),
            controlnet_conditioning_scale=[0.7, 0.4],
            control_guidance_start=[0.0, 0.3],
            control_guidance_end=[0.8, 1.0],
            output_type="latent",
        ).images
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - sampled(animator)).abs().max() > 1e-3, "the hints did nothing"


def test_hints_are_a_folder_a_video_or_one_image(tiny, net, tmp_path) -> None:
    frames = pixels()
    expected = sampled(tiny, sm.ControlNet(net, folder(tmp_path / "hints", frames)))
    clip = sm.Clip(frames, 8.0)
    for name in ("hints.apng", "hints.webp"):
        clip.save(tmp_path / name, quality=100)
        assert torch.equal(sampled(tiny, sm.ControlNet(net, tmp_path / name)), expected), name
    clip.save(tmp_path / "hints.mp4", quality=100)
    assert not torch.equal(sampled(tiny, sm.ControlNet(net, tmp_path / "hints.mp4")), sampled(tiny))
    Image.fromarray(frames[0]).save(tmp_path / "one.png")
    one = sampled(tiny, sm.ControlNet(net, tmp_path / "one.png"))
    again = sampled(tiny, sm.ControlNet(net, folder(tmp_path / "same", frames[:1].repeat(FRAMES, 0))))
    assert (one - again).abs().max() < 1e-5
    see_through = Image.fromarray(
        np.dstack([np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)])
    )
    see_through.save(tmp_path / "pose.png")
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "black.png")
    both = [sampled(tiny, sm.ControlNet(net, tmp_path / f"{name}.png")) for name in ("pose", "black")]
    assert torch.equal(*both)


def test_settings_act(tiny, net, tmp_path) -> None:
    hints = folder(tmp_path / "hints", pixels())
    plain = sampled(tiny)
    full = sampled(tiny, sm.ControlNet(net, hints))
    assert torch.allclose(sampled(tiny, sm.ControlNet(net, hints, scale=0)), plain, atol=1e-5)
    for settings in ({"scale": 0.5}, {"end": 0.5}, {"start": 0.5}, {"guess_mode": True}):
        steered = sampled(tiny, sm.ControlNet(net, hints, **settings))
        assert (steered - plain).abs().max() > 1e-4 and (steered - full).abs().max() > 1e-4, settings
    assert torch.equal(
        sampled(tiny, frames=1), sampled(tiny, sm.ControlNet(net, hints / "000.png", scale=0), frames=1)
    )
    assert torch.equal(sampled(tiny), plain)


def test_a_net_is_loaded_once_while_it_is_used(tiny, net, tmp_path, monkeypatch) -> None:
    hints = folder(tmp_path / "hints", pixels())
    sampled(tiny, sm.ControlNet(net, hints))
    net.unlink()
    sampled(tiny, sm.ControlNet(net, hints, scale=0.5), sm.ControlNet(net, hints, end=0.5))
    assert len(tiny.condition_models) == 1
    assert sm.Request(prompt="x", controls=[sm.ControlNet(net, hints)]).models.condition_models == (str(net),)


@pytest.mark.parametrize(
    ("hints", "settings", "words"),
    [
        ("two", {}, "two has 2 images, but the clip has 3 frames: .*`frames=2`"),
        ("nowhere", {}, "nowhere does not exist"),
        ("depth.safetensors", {}, "depth.safetensors is neither an image nor a video"),
        ("two", {"start": 0.6, "end": 0.5}, "from 0.6 to 0.5"),
        ("two", {"scale": float("nan")}, "scale of --control is nan"),
        ("two", {"scale": 99}, "at most 10: give scale=0.8"),
        ("two", {"guess_mode": "perhaps"}, "guess_mode of --control is perhaps, but it must be yes or no"),
        ("one.png", {"file": "no.safetensors"}, "no file or folder no.safetensors"),
    ],
)
def test_what_cannot_be_is_a_sentence(hints, settings, words, tiny, net, tmp_path) -> None:
    folder(tmp_path / "two", pixels(2))
    Image.fromarray(pixels(1)[0]).save(tmp_path / "one.png")
    with pytest.raises(sm.StillmotionError, match=words):
        sampled(tiny, sm.ControlNet(**{"file": net, "hints": tmp_path / hints} | settings))
    assert not tiny.pipeline.unet._forward_pre_hooks


def test_a_net_for_another_base_is_refused(tiny, tmp_path) -> None:
    wrong = save_controlnet(tiny_controlnet("sdxl"), tmp_path / "xl.safetensors")
    with pytest.raises(sm.StillmotionError, match="xl.safetensors is a ControlNet for .* but the base is"):
        sampled(tiny, sm.ControlNet(wrong, folder(tmp_path / "hints", pixels())))


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))
    return tmp_path


def test_typed_on_the_bundled_base_and_made_again(at, capsys) -> None:
    animator = sm.Animator.load(dtype="float32", device="cpu")
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(
        animator.pipeline.unet, conditioning_embedding_out_channels=(8, 16, 32, 64)
    )
    last = net.controlnet_cond_embedding.conv_out
    for layer in [*net.controlnet_down_blocks, net.controlnet_mid_block, last]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    net.save_pretrained("depth")
    folder(at / "hints", pixels(4, 64, 48))
    flags = [
        "--frames",
        "4",
        "--steps",
        "2",
        "--seed",
        "1",
        "--dtype",
        "float32",
        "--quality",
        "100",
        "-o",
        "a.webp",
    ]
    assert run(["animate", "a rocket", *flags, "--control", "depth:hints/,scale=0.8,to=0.6"]) == 0
    made = sm.Clip.load("a.webp")
    assert made.request.conditions == (sm.ControlNet("depth", "hints/", scale=0.8, end=0.6),)
    plain = animator.animate("a rocket", frames=4, num_inference_steps=2, seed=1)
    assert not np.array_equal(made.frames, plain.frames)
    assert run(["redo", "a.webp", "-o", "b.webp", "--quality", "100"]) == 0
    assert np.array_equal(sm.Clip.load("b.webp").frames, made.frames)
    (at / ".state" / "stillmotion" / "opened").unlink()
    capsys.readouterr()
    assert run(["redo", "a.webp", "-o", "c.webp"]) == 2
    said = capsys.readouterr().err
    assert "controlnet weights" in said and "depth" in said and "hints/" in said and "--trust" in said
