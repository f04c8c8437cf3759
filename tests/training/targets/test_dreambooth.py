"""DreamBooth: the prior term, images of the class, and its products in plain diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from endings import ends_the_same, state_of
from PIL import Image
from torch.nn.functional import mse_loss

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.lora_model import attach_lora
from stillmotion.errors import RequestError
from stillmotion.training import train
from stillmotion.training.config.images import FULL_RATE, DreamBoothConfig
from stillmotion.training.data import class_images
from stillmotion.training.data.class_images import missing
from stillmotion.training.engine.rng import sample_rngs
from stillmotion.training.targets import dreambooth
from stillmotion.training.targets.dreambooth import DreamBoothTarget


@pytest.fixture
def configure(brief, images, tmp_path):
    own = {"instance_images": images, "instance_prompt": "a red dog", "num_class_images": 3, "rank": 4}

    def make(name, **fields):
        return DreamBoothConfig.parse(**(brief | own | {"output": tmp_path / name} | fields))

    return make


@pytest.fixture(scope="module")
def kind(tmp_path_factory):
    """Three images of the class (read only)."""
    folder = tmp_path_factory.mktemp("kind")
    noise = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def make_target(config, log=lambda sentence: None):
    return DreamBoothTarget(config, Accelerator(cpu=True), log)


def drawn(pipeline):
    generator = torch.Generator().manual_seed(3)
    options = {"width": 32, "height": 32, "num_inference_steps": 2, "output_type": "np"}
    return torch.from_numpy(pipeline("a red dog", generator=generator, **options).images)


def plain(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_prior_is_a_second_mean_with_its_weight(configure, kind):
    """Oracle: both terms computed one image at a time from the pipeline's own parts."""
    config = configure(
        "run", class_prompt="a dog", class_images=kind, prior_weight=0.25, batch_size=2, instance_prompt="red"
    )
    target = make_target(config)
    batch = sample_rngs(0, 0, 0, 2, 1)
    pipeline = target.denoiser.pipeline

    def term(dataset, prompt, series):
        losses = []
        for rng in series:
            sample = dataset.sample(rng)
            assert sample.caption == prompt
            time = torch.tensor([sample.timestep])
            noisy = pipeline.scheduler.add_noise(sample.latents, sample.noise, time)
            text = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
            losses.append(mse_loss(pipeline.unet(noisy, time, text).sample, sample.noise))
        return torch.stack(losses).mean()

    with torch.no_grad():
        subject = term(target.subject, "red", batch)
        others = term(target.prior, "a dog", [rng.stream("class") for rng in batch])
        assert torch.allclose(target.loss(batch).value, subject + 0.25 * others, rtol=1e-4)
    assert not torch.equal(batch[0].noise(4), batch[0].stream("class").noise(4))
    alone = make_target(configure("alone", batch_size=2, instance_prompt="red"))
    with torch.no_grad():
        assert torch.allclose(alone.loss(batch).value, subject, rtol=1e-4)


def test_class_images_are_drawn_once_and_go_on(configure, monkeypatch):
    config = configure("run", class_prompt="a dog")
    folder = config.output / "class-images"
    plainly = class_images.sample_clip

    def interrupted(*arguments, **options):
        if len(list(folder.glob("*.png"))) == 2:
            raise KeyboardInterrupt
        return plainly(*arguments, **options)

    monkeypatch.setattr(class_images, "sample_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_target(config)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert kept.keys() == {"class-00000.png", "class-00001.png"}
    monkeypatch.setattr(class_images, "sample_clip", plainly)
    said = []
    assert len(make_target(config, said.append).prior) == 3
    assert "has 2 images: the base draws 1 more" in " ".join(said)
    assert all((folder / name).stat().st_mtime_ns == time for name, time in kept.items())
    other = configure("other", class_prompt="a dog")
    make_target(other)
    for number in range(3):
        name = f"class-{number:05d}.png"
        ours, again = (Image.open(c.output / "class-images" / name) for c in (config, other))
        assert np.array_equal(ours, again)


def test_images_of_ones_own_count(kind, tmp_path):
    assert missing(kind, 3) == [] and [path.name for path in missing(kind, 5)] == [
        "class-00000.png",
        "class-00001.png",
    ]
    assert len(missing(tmp_path / "none", 4)) == 4


def test_as_lora_it_is_a_lora(configure, kind, sd15_folder):
    config = configure("run", class_prompt="a dog", class_images=kind, learning_rate=3e-2, validation_steps=6)
    outcome = train(config)
    assert (outcome.output / "samples" / "step-00000006.png").exists()
    pipeline = plain(sd15_folder)
    with attach_lora(pipeline, outcome.output / "lora.safetensors"):
        ours = drawn(pipeline)
    pipeline.load_lora_weights(outcome.output / "lora-peft.safetensors")
    assert torch.allclose(drawn(pipeline), ours, atol=1e-4)


@pytest.mark.parametrize("text", [False, True])
def test_in_full_it_is_a_model_as_folder_and_as_file(configure, sd15_folder, text):
    config = configure("run", method="full", learning_rate=1e-3, train_text_encoder=text, ema_decay=0.5)
    outcome = train(config)
    folder, file = outcome.output / "model", outcome.output / "model.safetensors"
    base, trained, single = plain(sd15_folder), plain(folder), load_base(file)
    weights = state_of(outcome.output)["ema"]
    changed = [trained.unet, *([trained.text_encoder] if text else [])]
    assert torch.equal(torch.cat([p.flatten() for net in changed for p in net.parameters()]), weights)
    single.set_progress_bar_config(disable=True)
    ours = drawn(trained)
    assert torch.allclose(drawn(single), ours, atol=1e-5) and not torch.allclose(ours, drawn(base), atol=1e-3)
    same = {"vae", "text_encoder"} - ({"text_encoder"} if text else set())
    for name in same:
        before, after = (getattr(p, name).state_dict() for p in (base, trained))
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert trained.scheduler.config == base.scheduler.config
    assert trained.tokenizer.get_vocab() == base.tokenizer.get_vocab()


def test_sdxl_in_full(configure, sdxl_folder):
    fields = {"method": "full", "train_text_encoder": True, "learning_rate": 1e-3, "max_train_steps": 2}
    outcome = train(configure("run", base=str(sdxl_folder), **fields))
    folder = StableDiffusionXLPipeline.from_pretrained(outcome.output / "model")
    folder.set_progress_bar_config(disable=True)
    single = load_base(outcome.output / "model.safetensors")
    single.set_progress_bar_config(disable=True)
    base = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        trained, before = (getattr(p, name).state_dict() for p in (folder, base))
        assert any(not torch.equal(trained[key], before[key]) for key in before)
    assert torch.allclose(drawn(single), drawn(folder), atol=1e-5)


def test_training_in_full_lowers_the_loss(configure):
    config = configure("run", method="full", learning_rate=1e-3, max_train_steps=30, batch_size=2)
    target = make_target(config)
    fixed = sample_rngs(99, 0, 0, 16, 1)
    with torch.no_grad():
        before = target.loss(fixed).value.item()
    outcome = train(config)
    target.denoiser.unet.load_state_dict(plain(outcome.output / "model").unet.state_dict())
    with torch.no_grad():
        assert target.loss(fixed).value.item() < 0.9 * before


def test_in_bf16_the_weights_of_the_base_are_not_rounded(configure, sd15_folder):
    target = make_target(configure("run", method="full", precision="bf16", train_text_encoder=True))
    base = plain(sd15_folder)
    before = {
        f"{part}/{name}": p
        for part in ("unet", "text_encoder")
        for name, p in getattr(base, part).named_parameters()
    }
    weights = target.parameters()
    assert before.keys() == weights.keys() and all(
        torch.equal(before[name], weights[name]) for name in before
    )
    outcome = train(configure("run", method="full", precision="bf16", train_text_encoder=True))
    assert {p.dtype for p in plain(outcome.output / "model").unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("method, step", [("lora", 5), ("full", 2)])
def test_interrupted_anywhere_it_ends_the_same(configure, kind, method, step):
    fields = {"max_train_steps": 7, "checkpoint_steps": 3, "class_prompt": "a dog", "class_images": kind}
    artifact = "lora.safetensors" if method == "lora" else "model.safetensors"
    ends_the_same(lambda name: configure(name, method=method, flip=True, **fields), step, artifact)


def test_rates_and_classes_are_checked(configure, capsys):
    assert configure("a").learning_rate == 2e-4
    assert (
        configure("a", method="full").learning_rate == FULL_RATE == configure("a", method="full").usual_rate
    )
    assert configure("a", method="full", learning_rate=1e-5).learning_rate == 1e-5
    with pytest.raises(RequestError, match="class_prompt is missing: say what these images show"):
        configure("a", class_images="kind")
    train(configure("run", method="full", max_train_steps=1, learning_rate=1e-3))
    said = " ".join(capsys.readouterr().err.split())
    assert "learning_rate 0.001 is very high" in said and "without --class-prompt" in said


def test_the_base_draws_before_anything_is_on_it(configure, monkeypatch):
    order = []
    for name in ("class_images", "make_trainable"):
        plainly = getattr(dreambooth, name)
        monkeypatch.setattr(dreambooth, name, lambda *a, n=name, f=plainly: (order.append(n), f(*a))[1])
    make_target(configure("run", class_prompt="a dog", num_class_images=1))
    assert order == ["class_images", "make_trainable"]
