"""`sm.Trainer`: a dataset and a module of one's own on the engine of `stillmotion train`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_pipeline
from torch import nn

import stillmotion as sm
from stillmotion.attachments.base import Attachment
from stillmotion.errors import DataError, TrainingError
from stillmotion.training.engine.checkpoint import checkpoints
from stillmotion.training.targets.own import as_pixels

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def items(count=4, frames=3, size=16):
    generator = torch.Generator().manual_seed(0)
    shape = (frames, 3, size, size)
    return [
        (torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), f"a rocket {number}")
        for number in range(count)
    ]


@pytest.fixture
def config(tmp_path):
    def make(name="run", **fields):
        short = {"max_train_steps": 3, "validation_steps": 0, "precision": "fp32", "device": "cpu"}
        return sm.TrainerConfig(**(short | {"output": tmp_path / name, "ema_decay": 0} | fields))

    return make


class Gain(nn.Module):
    """A factor per channel of the UNet's first convolution, put on by a hook."""

    def __init__(self, unet):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(unet.config.block_out_channels[0]))
        self.handle = unet.conv_in.register_forward_hook(
            lambda layer, args, output: output * self.gain.to(output.dtype)[:, None, None]
        )


def test_fresh_motion_on_own_clips_ends_in_a_folder_that_loads(config, sd15_folder):
    seen = []
    trainer = sm.Trainer(
        str(sd15_folder),
        lambda unet: sm.MotionModel.for_unet(unet, positions=4),
        items(),
        config(validation_steps=3, validation_inference_steps=1),
        callbacks=[seen.append],
    )
    keys = list(trainer.pipeline.unet.state_dict())
    outcome = trainer.train()
    assert outcome.finished and [step.step for step in seen] == [1, 2, 3]
    motion = sm.MotionModel.load(outcome.output / "motion")
    assert (motion.spec.positions, motion.family.sampling.frames, motion.family.sampling.width) == (4, 3, 16)
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(motion.state_dict()[name], tensor.detach())
    assert (outcome.output / "samples" / "step-00000003.png").exists()
    assert list(trainer.pipeline.unet.state_dict()) == keys
    assert not trainer.pipeline.unet.conv_in._forward_hooks and not any(
        module._forward_hooks for module in trainer.pipeline.unet.modules()
    )


def test_any_module_trains_and_the_scheduler_comes_back(config):
    pipeline = tiny_pipeline("sd15")
    scheduler, before = pipeline.scheduler, pipeline.unet.conv_in.weight.clone()
    trainer = sm.Trainer(pipeline, Gain, items(), config(learning_rate=1e-2))
    outcome = trainer.train()
    saved = load_file(outcome.output / "model.safetensors")
    assert saved.keys() == {"gain"} and not torch.equal(saved["gain"], torch.ones_like(saved["gain"]))
    assert torch.equal(pipeline.unet.conv_in.weight, before) and pipeline.scheduler is scheduler


def test_an_attachment_of_ones_own_trains_and_knows_its_clips(config):
    pipeline, seen = tiny_pipeline("sd15"), set()

    class Fade(nn.Module, Attachment):
        """A factor for each frame of the clip."""

        def __init__(self):
            super().__init__()
            self.curve = nn.Parameter(torch.ones(4))

        def on_attach(self, unet):
            yield unet.conv_in.register_forward_hook(self.after)

        def after(self, layer, args, output):
            seen.add(self.context.frames)
            each = self.curve[self.context.images(len(output))]
            return output * each.to(output.dtype)[:, None, None, None]

    dataset = [(torch.randn(frames, 4, 8, 8), "a rocket") for frames in (2, 4)]
    with Fade().attach(pipeline) as fade:
        outcome = sm.Trainer(pipeline, fade, dataset, config(batch_size=2)).train()
    assert seen == {2, 4}
    assert not torch.equal(load_file(outcome.output / "model.safetensors")["curve"], torch.ones(4))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_part_of_the_unet_trains_and_the_rest_stays(config, precision):
    pipeline = tiny_pipeline("sd15")
    pipeline.unet.requires_grad_(False)
    pipeline.unet.conv_out.requires_grad_(True)
    start, frozen = pipeline.unet.conv_out.weight.clone(), pipeline.unet.conv_in.weight.clone()
    outcome = sm.Trainer(pipeline, pipeline.unet, items(), config(precision=precision)).train()
    saved = load_file(outcome.output / "model.safetensors")
    assert (
        saved.keys() == {"conv_out.weight", "conv_out.bias"}
        and saved["conv_out.weight"].dtype == torch.float32
    )
    assert not torch.equal(saved["conv_out.weight"], start)
    assert torch.allclose(pipeline.unet.conv_in.weight.float(), frozen, atol=1e-2)


def test_a_run_goes_on_bit_for_bit(config):
    def train(name, steps):
        trainer = sm.Trainer(tiny_pipeline("sd15"), Gain, items(), config(name, max_train_steps=steps))
        return trainer.train().output

    train("broken", 2)
    whole, broken = train("whole", 5), train("broken", 5)
    for file in ("model.safetensors", f"checkpoints/{checkpoints(whole)[-1].name}/state.safetensors"):
        one, other = load_file(whole / file), load_file(broken / file)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_own_loss_is_what_is_minimised(config):
    seen = []

    def loss(prediction):
        assert prediction.output.shape == prediction.target.shape == (1, 3, 4, 8, 8)
        value = (prediction.output - prediction.target).abs().mean()
        seen.append(float(value.detach()))
        return value

    losses = []
    trainer = sm.Trainer(
        tiny_pipeline("sd15"), Gain, items(), config(), loss=loss, callbacks=[lambda s: losses.append(s.loss)]
    )
    trainer.train()
    assert losses == pytest.approx(seen) and len(seen) == 3
    bad = sm.Trainer(tiny_pipeline("sd15"), Gain, items(), config("bad"), loss=lambda p: p.output)
    with pytest.raises(
        TrainingError, match=r"loss function gave float32 of shape \(1, 3, 4, 8, 8\), expected a"
    ):
        bad.train()


def test_latents_and_clips_of_several_lengths(config):
    dataset = [(torch.randn(frames, 4, 8, 8), ["a rocket", "a cat"]) for frames in (2, 3, 1, 2)]
    trainer = sm.Trainer(
        tiny_pipeline("sd15"), sm.MotionModel.for_unet, dataset, config(batch_size=4, max_train_steps=1)
    )
    assert trainer.train().finished


def test_frames_come_in_many_forms():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    wanted = torch.from_numpy(pixels).movedim(-1, 1)
    images = [Image.fromarray(frame) for frame in pixels]
    for content in (pixels, torch.from_numpy(pixels), wanted, images, tuple(images), sm.Clip(pixels, 8)):
        assert torch.equal(as_pixels(content), wanted)
    for content in (images[0], pixels[0], wanted[0]):
        assert torch.equal(as_pixels(content), wanted[:1])
    for content in (
        "a",
        None,
        [],
        pixels.astype(float),
        [images[0], images[1].resize((3, 3))],
        pixels[..., :2],
    ):
        assert as_pixels(content) is None


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ([], r"dataset \(list\) is empty"),
        (iter([]), "has no __len__: give a list or a torch Dataset"),
        ([torch.zeros(1, 4, 8, 8)], r"dataset\[0\] is float32 of shape .*expected a pair"),
        (
            [(torch.zeros(1, 3, 8, 8), "a")],
            r"dataset\[0\] has float32 of shape \(1, 3, 8, 8\), expected latents",
        ),
        ([(torch.zeros(1, 4, 8, 8), 3)], r"dataset\[0\] has int as its caption"),
        ([(torch.zeros(1, 4, 8, 8), [])], r"dataset\[0\] has a list of 0 as its caption"),
    ],
)
def test_what_is_no_dataset_is_said(config, dataset, sentence):
    with pytest.raises((DataError, TrainingError), match=sentence):
        sm.Trainer(tiny_pipeline("sd15"), Gain, dataset, config()).train()


def test_a_module_that_acts_on_nothing_is_said(config):
    with pytest.raises(TrainingError, match="Nothing that Linear has changes what the UNet predicts"):
        sm.Trainer(tiny_pipeline("sd15"), nn.Linear(2, 2), items(), config()).train()
    with pytest.raises(
        TrainingError, match=r"\(1 frames\): attach .* clips of two frames or more for motion"
    ):
        sm.Trainer(tiny_pipeline("sd15"), sm.MotionModel.for_unet, items(frames=1), config("motion")).train()


def test_a_module_without_anything_to_train_is_said(config):
    with pytest.raises(TrainingError, match="Identity has no parameter with requires_grad"):
        sm.Trainer(tiny_pipeline("sd15"), nn.Identity(), items(), config()).train()


@pytest.mark.slow
def test_the_example_of_the_docs_runs_as_it_stands(tmp_path):
    section = DOCS.read_text("utf-8").partition("## Your own data and model, from Python")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 20
    assert (tmp_path / "squares.webp").exists()
    assert (tmp_path / "runs" / "squares" / "samples" / "step-00000020.png").exists()
