"""The style LoRA from images on disk to files that stillmotion and diffusers load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from endings import ends_the_same, same_end, sheet_size, state_of
from PIL import Image
from safetensors.torch import load_file

from stillmotion.checkpoints.lora_model import attach_lora
from stillmotion.errors import DataError, TrainingError
from stillmotion.training import train
from stillmotion.training.config.images import LoraTrainConfig
from stillmotion.training.denoiser import image_loss
from stillmotion.training.engine import checkpoint
from stillmotion.training.engine.logger import read_losses
from stillmotion.training.engine.rng import sample_rngs
from stillmotion.training.targets.lora import LoraTarget

PRODUCTS = ("lora.safetensors", "lora-peft.safetensors")
RUN = [sys.executable, "-c", "from stillmotion.cli.train import train; train()", "lora", "--config"]


@pytest.fixture
def configure(brief, images, tmp_path):
    def make(name, **fields):
        return LoraTrainConfig.parse(
            **(brief | {"images": images, "rank": 4, "output": tmp_path / name} | fields)
        )

    return make


def make_target(config, log=lambda sentence: None):
    return LoraTarget(config, Accelerator(cpu=True), log)


def drawn(pipeline, prompt="a red apple"):
    generator = torch.Generator().manual_seed(3)
    options = {"width": 32, "height": 32, "num_inference_steps": 2, "output_type": "np"}
    return torch.from_numpy(pipeline(prompt, generator=generator, **options).images)


@pytest.mark.parametrize(
    "fields", [{}, {"train_text_encoder": True, "alpha": 2.0}, {"conv": True, "rank": 2, "flip": True}]
)
def test_products_draw_in_diffusers_what_they_draw_here(configure, sd15_folder, fields):
    config = configure("run", learning_rate=3e-2, validation_steps=6, **fields)
    outcome = train(config)
    assert outcome.finished and (outcome.output / "samples" / "step-00000006.png").exists()
    plain = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    before = drawn(plain)
    with attach_lora(plain, outcome.output / PRODUCTS[0]):
        ours = drawn(plain)
    assert (ours - before).abs().max() > 1e-3 and torch.equal(drawn(plain), before)
    for artifact in PRODUCTS:
        plain.load_lora_weights(outcome.output / artifact)
        assert torch.allclose(drawn(plain), ours, atol=1e-4)
        plain.unload_lora_weights()


@pytest.mark.parametrize("fields", [{}, {"train_text_encoder": True}])
def test_sheets_show_what_the_base_draws_without_the_lora(configure, sd15_folder, fields):
    config = configure("run", learning_rate=0.1, max_train_steps=3, validation_steps=3, **fields)
    train(config)
    sheets = []
    for step in (0, 3):
        with Image.open(config.output / "samples" / f"step-{step:08d}.png") as image:
            assert image.size == sheet_size(rows=4, columns=8, side=32)
            sheets.append(np.asarray(image)[36:].astype(int))
    with_lora, without = (slice(0, 4 * 36), slice(4 * 36, None))
    assert (sheets[0][:, without] == sheets[1][:, without]).all()
    assert (sheets[0][18:50, with_lora][:, :-4] == sheets[0][18:50, without]).all(), (
        "a fresh LoRA does nothing"
    )
    assert (sheets[1][18:50, with_lora][:, :-4] != sheets[1][18:50, without]).any()


def test_sdxl_with_both_text_encoders(configure, sdxl_folder):
    config = configure("run", base=str(sdxl_folder), train_text_encoder=True, learning_rate=3e-2)
    outcome = train(config)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    pipeline.set_progress_bar_config(disable=True)
    with attach_lora(pipeline, outcome.output / PRODUCTS[0]) as attached:
        assert {part for part, _ in attached.lora_layers} == {"unet", "text_encoder", "text_encoder_2"}
        ours = drawn(pipeline)
    pipeline.load_lora_weights(outcome.output / PRODUCTS[1])
    assert torch.allclose(drawn(pipeline), ours, atol=1e-4)


def test_training_lowers_the_loss_and_leaves_the_base(configure):
    config = configure("run", max_train_steps=60, batch_size=2, learning_rate=1e-2, text_dropout=0)
    target = make_target(config)
    before = {name: part.state_dict() for name, part in target.denoiser.parts.items()}
    before = {(p, n): t.clone() for p, state in before.items() for n, t in state.items()}
    fixed = sample_rngs(99, 0, 0, 16, 1)
    with torch.no_grad():
        first = target.loss(fixed).value.item()
    outcome = train(config)
    with attach_lora(target.denoiser.pipeline, outcome.output / PRODUCTS[0]), torch.no_grad():
        assert target.loss(fixed).value.item() < 0.95 * first
    after = {(p, n): t for p, part in target.denoiser.parts.items() for n, t in part.state_dict().items()}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_text_encoders_learn_only_when_asked(configure):
    """Gradients reach the text encoder's LoRA, and nothing of the base has one."""
    target = make_target(configure("run", train_text_encoder=True))
    parameters = target.parameters()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
        torch.nn.init.normal_(parameter, std=0.1)
    batch = sample_rngs(0, 0, 0, 2, 1)
    before = target.loss(batch).value
    before.backward()
    told = [p for name, p in parameters.items() if name.startswith("text_encoder/")]
    assert told and all(parameter.grad.abs().max() > 0 for parameter in told if parameter.ndim)
    assert all(p.grad is None for part in target.denoiser.parts.values() for p in part.parameters())
    with torch.no_grad():
        told[0].neg_()
        assert target.loss(batch).value != before  # nothing of the text was kept
    frozen = make_target(configure("other"))
    assert not any(name.startswith("text") for name in frozen.parameters())


def test_images_of_several_sizes_are_the_mean_of_each_alone(configure):
    target = make_target(configure("run", batch_size=4, snr_gamma=5.0))
    samples = [target.dataset.sample(rng) for rng in sample_rngs(0, 0, 0, 4, 1)]
    assert len({sample.latents.shape for sample in samples}) == 2
    with torch.no_grad():
        together = image_loss(target.denoiser, samples).value
        alone = [image_loss(target.denoiser, [sample]).value for sample in samples]
    assert torch.allclose(together, torch.stack(alone).mean(), rtol=1e-5)


def test_a_draw_that_is_switched_on_changes_no_other(configure):
    plain, mirrored = make_target(configure("plain")), make_target(configure("mirrored", flip=True))
    changed = 0
    for rng in sample_rngs(0, 0, 0, 16, 1):
        one, other = plain.dataset.sample(rng), mirrored.dataset.sample(rng)
        assert torch.equal(one.noise, other.noise)
        assert (one.timestep, one.caption) == (other.timestep, other.caption)
        changed += not torch.equal(one.latents, other.latents)
    assert 0 < changed < 16


def test_batches_are_of_one_size_and_repeats_count(configure, tmp_path):
    for number in range(6):
        folder = tmp_path / "set" / ("2_tall" if number % 2 else "wide")
        folder.mkdir(parents=True, exist_ok=True)
        size = (16, 64) if number % 2 else (64, 16)
        Image.new("RGB", size, (number * 40, 0, 0)).save(folder / f"{number}.png")
    dataset = make_target(configure("run", images=tmp_path / "set", batch_size=3)).dataset
    assert (len(dataset), len(dataset.clips)) == (6, 9)
    taken = [dataset.clip(rng) for step in range(3) for rng in sample_rngs(0, step, 0, 3, 1)]
    times = Counter(clip.item.path.stem for clip in taken)
    assert times == {str(number): 2 if number % 2 else 1 for number in range(6)}
    batches = [taken[start : start + 3] for start in range(0, 9, 3)]
    assert all(len({clip.item.captions for clip in batch}) == 1 for batch in batches)


def test_small_images_and_equal_captions_are_noticed(configure, tmp_path):
    folder = tmp_path / "my_cats"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (20, 24)).save(folder / f"{name}.png")
    said = []
    make_target(configure("run", images=folder), said.append)
    told = " ".join(said)
    assert "2 of 2 images are smaller than the resolution 32 (the smallest 20x24)" in told
    assert "all captions are 'my cats'" in told


def test_a_image_may_be_named_twice_with_other_captions(configure, images, tmp_path):
    rows = [{"file": "red.png", "caption": caption} for caption in ("red", "round")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "red.png").write_bytes((images / "red.png").read_bytes())
    dataset = make_target(configure("run", images=tmp_path / "t.jsonl", text_dropout=0.0)).dataset
    assert {dataset.sample(rng).caption for rng in sample_rngs(0, 0, 0, 2, 1)} == {"red", "round"}


def test_what_cannot_be_used_is_said(configure, tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "page.png").write_text("<html>404</html>")
    with pytest.raises(DataError, match="None of the 1 images can be used. 1 file skipped"):
        make_target(configure("run", images=tmp_path / "only"))
    with pytest.raises(TrainingError, match="resolution is 33, .* multiples of 2 pixels"):
        make_target(configure("run", resolution=33))


def test_dropout_is_for_training_only(configure):
    target = make_target(configure("run", dropout=0.5))
    for parameter in target.parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = sample_rngs(0, 0, 0, 1, 1)
    with torch.no_grad():
        assert target.loss(batch).value != target.loss(batch).value
        with target.trainable.eval_mode():
            assert target.loss(batch).value == target.loss(batch).value
        assert target.loss(batch).value != target.loss(batch).value


def test_gradient_checkpointing_changes_memory_only(configure):
    fields = {"max_train_steps": 3, "train_text_encoder": True, "dropout": 0.3}
    plain = train(configure("plain", **fields))
    checked = train(configure("checked", **fields, gradient_checkpointing=True))
    assert torch.allclose(state_of(plain.output)["weights"], state_of(checked.output)["weights"], atol=1e-5)


def test_bf16_keeps_fp32_weights(configure):
    outcome = train(configure("bf16", precision="bf16", train_text_encoder=True))
    assert {tensor.dtype for tensor in state_of(outcome.output).values()} == {torch.float32}
    assert {t.dtype for t in load_file(outcome.output / PRODUCTS[1]).values()} == {torch.float32}


@pytest.mark.parametrize("step, fields", [(2, {"dropout": 0.2}), (5, {"ema_decay": 0.9, "flip": True})])
def test_interrupted_anywhere_it_ends_the_same(configure, step, fields):
    fields |= {"max_train_steps": 7, "checkpoint_steps": 3, "batch_size": 2, "train_text_encoder": True}
    ends_the_same(lambda name: configure(name, **fields), step, *PRODUCTS)


def write_config(config: LoraTrainConfig, path: Path) -> str:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)), "utf-8")
    return str(path)


@pytest.mark.slow
def test_killed_with_sigkill_it_ends_the_same(configure, tmp_path):
    fields = {"max_train_steps": 40, "checkpoint_steps": 7, "batch_size": 2, "flip": True}
    killed, whole = configure("killed", **fields), configure("whole", **fields)
    path = write_config(killed, tmp_path / "killed.yaml")
    process = subprocess.Popen([*RUN, path], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(read_losses(killed.output / "loss.csv")) < 11 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(read_losses(killed.output / "loss.csv")) < 40
    subprocess.run([*RUN, path], check=True)
    subprocess.run([*RUN, write_config(whole, tmp_path / "whole.yaml")], check=True)
    same_end(whole.output, killed.output, *PRODUCTS)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(configure, tmp_path):
    one = configure("one", batch_size=4, train_text_encoder=True, max_train_steps=5)
    two = configure("two", batch_size=2, train_text_encoder=True, max_train_steps=5)
    subprocess.run([*RUN, write_config(one, tmp_path / "one.yaml")], check=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "go.py"
    script.write_text("from stillmotion.cli.train import train\ntrain()\n", "utf-8")
    command = [*launch, str(script), "lora", "--config", write_config(two, tmp_path / "two.yaml")]
    subprocess.run(command, check=True, timeout=400)
    states = [checkpoint.read_newest(config.output) for config in (one, two)]
    assert [state.facts["processes"] for state in states] == [1, 2]
    losses = [[row.loss for row in read_losses(config.output / "loss.csv")] for config in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.allclose(states[0].tensors["weights"], states[1].tensors["weights"], atol=1e-4)
