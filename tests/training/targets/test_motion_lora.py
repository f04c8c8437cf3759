"""Motion LoRAs: from videos, one reference, camera moves; what trains, what comes out, who can read it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AnimateDiffPipeline
from endings import ends_the_same, same_end, sheet_size, state_of
from lora_targets import gradients, make_target, shaken
from oracles.peers import adapter_of, motion_unet
from PIL import Image
from safetensors.torch import load_file
from tiny import SIZE

from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import DataError, RequestError, WrongKind
from stillmotion.training import train
from stillmotion.training.config import MotionLoraConfig
from stillmotion.training.engine import checkpoint
from stillmotion.training.engine.logger import read_losses
from stillmotion.training.engine.rng import sample_rngs

Configure = Callable[..., MotionLoraConfig]
PRODUCTS = ("motion-lora.safetensors", "motion-lora-peft.safetensors")
RUN = [sys.executable, "-c", "from stillmotion.cli.train import train; train()", "motion-lora", "--config"]


@pytest.fixture
def one_video(clips: Path) -> dict[str, Any]:
    return {"videos": None, "reference": clips / "red-square.webp", "prompt": "a red rocket"}


def test_from_videos_to_files(configure_lora):
    config = configure_lora(validation_steps=6, validation_inference_steps=2)
    outcome = train(config)
    assert outcome.finished
    with Image.open(outcome.output / "samples" / "step-00000006.png") as sheet:
        assert sheet.size == sheet_size(rows=4, columns=8)
    original, peft = (Lora.load(outcome.output / name) for name in PRODUCTS)
    assert original.parts.keys() == peft.parts.keys() == {"motion"}
    layers = original.parts["motion"]
    assert len(layers) == 7 * 2 * 4  # modules, attentions, projections
    for path, factors in layers.items():
        assert factors.rank == 2 and factors.tensors["up"].any()
        assert all(torch.equal(t, peft.parts["motion"][path].tensors[n]) for n, t in factors.tensors.items())
    assert {name: identify(outcome.output / name).kind for name in PRODUCTS} == dict.fromkeys(
        PRODUCTS, "motion-lora"
    )
    assert not (outcome.output / "spatial-lora.safetensors").exists()


def test_the_original_layout_is_the_originals(configure_lora):
    outcome = train(configure_lora(max_train_steps=1))
    block = "temporal_transformer.transformer_blocks.0.attention_blocks.0.processor"
    keys = set(load_file(outcome.output / PRODUCTS[0]))
    for name in ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora"):
        for end in ("down", "up"):
            assert f"down_blocks.0.motion_modules.0.{block}.{name}.{end}.weight" in keys
    assert len(keys) == 7 * 2 * 4 * 2 and all(key.endswith((".down.weight", ".up.weight")) for key in keys)


def test_what_is_saved_is_the_running_mean(configure_lora):
    outcome = train(configure_lora())
    saved = Lora.load(outcome.output / PRODUCTS[0]).parts["motion"]
    parameters = make_target(configure_lora()).parameters()
    ema = state_of(outcome.output)["ema"].split([p.numel() for p in parameters.values()])
    for name, wanted in zip(parameters, ema, strict=True):
        path, _, end = name.removeprefix("motion/").rpartition(".")
        assert torch.equal(saved[path].tensors[end].flatten(), wanted)


def test_diffusers_computes_the_same_with_it(configure_lora, emoji_folder):
    """Oracle: AnimateDiffPipeline with load_lora_weights of our file, against our hooks."""
    outcome = train(configure_lora(learning_rate=5e-2, max_train_steps=8))
    pipeline, net = load_base(emoji_folder), MotionModel.load(emoji_folder).requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(4, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(5))
    size = {"height": SIZE, "width": SIZE, "num_inference_steps": 3, "output_type": "pt"}
    peer = AnimateDiffPipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=motion_unet(pipeline.unet, net),
        motion_adapter=adapter_of(net),
        scheduler=pipeline.scheduler,
    )
    peer.set_progress_bar_config(disable=True)
    peer.load_lora_weights(outcome.output, weight_name="motion-lora-peft.safetensors")
    video = latents.transpose(0, 1)[None].clone()
    theirs = peer("a rocket", num_frames=4, latents=video, **size).frames[0]

    def ours(*files: str) -> torch.Tensor:
        with attach_motion(pipeline.unet, net, 4, group_norm="pooled"):
            attached = [Lora.load(outcome.output / file).attach(pipeline, net) for file in files]
            made = pipeline("a rocket", num_images_per_prompt=4, latents=latents.clone(), **size).images
            for lora in attached:
                lora.detach()
        return made

    for file in PRODUCTS:
        assert (ours(file) - theirs).abs().max() < 1e-4
    assert (ours() - theirs).abs().max() > 1e-2


def test_base_and_motion_stay_bit_for_bit(configure_lora, one_video, emoji_folder):
    target = make_target(configure_lora(**one_video))
    target.loss(sample_rngs(0, 0, 0, 2, 1)).value.backward()
    assert all(parameter.grad is not None for parameter in target.parameters().values())
    networks = (
        (target.motion, MotionModel.load(emoji_folder)),
        (target.denoiser.unet, load_base(emoji_folder).unet),
    )
    for trained, original in networks:
        state, wanted = trained.state_dict(), original.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_fresh_lora_changes_nothing(configure_lora):
    target = make_target(configure_lora())
    batch = sample_rngs(0, 0, 0, 2, 1)
    with torch.no_grad():
        before = target.loss(batch).value
        target.lora_params.detach()
        assert torch.equal(target.loss(batch).value, before)


def test_the_debiased_loss_is_the_formula(configure_lora):
    """MotionDirector's, written out: MSE(sqrt(2) said - said_j, sqrt(2) wanted - wanted_j)."""
    batch = sample_rngs(0, 3, 0, 3, 1)
    target = shaken(make_target(configure_lora(debias_weight=0.7)))
    with torch.no_grad():
        prediction = target.denoiser.predict([target.sample(rng) for rng in batch])
        plain, apart = [], []
        for said, wanted, rng in zip(prediction.output, prediction.target, batch, strict=True):
            j = rng.index("debias_anchor", 4)
            plain.append((said - wanted).square().mean())
            ours, theirs = 2**0.5 * said - said[j], 2**0.5 * wanted - wanted[j]
            apart.append((ours - theirs).square().mean())
        expected = sum(plain) / 3 + 0.7 * sum(apart) / 3
        assert torch.allclose(target.loss(batch).value, expected, rtol=1e-5)
        without = make_target(configure_lora(debias_weight=0))
        for name, parameter in without.parameters().items():
            parameter.data = target.parameters()[name].data
        assert torch.allclose(without.loss(batch).value, sum(plain) / 3, rtol=1e-5)


def test_anchors_are_all_frames_in_turn():
    taken = {rng.index("debias_anchor", 4) for rng in sample_rngs(0, 0, 0, 100, 1)}
    assert taken == {0, 1, 2, 3}


def test_of_one_video_each_lora_learns_its_own_part(configure_lora, one_video):
    """The spatial LoRA has the gradient of single frames only, the temporal one that of clips only."""
    target = shaken(make_target(configure_lora(**one_video)))
    batch = sample_rngs(0, 1, 0, 2, 1)
    samples = [target.sample(rng) for rng in batch]
    both = gradients(target, target.loss(batch).value)
    clips = gradients(target, target.motion_loss(target.denoiser.predict(samples), batch))
    frames = gradients(target, target.appearance_loss(samples, batch))
    assert both.keys() == target.parameters().keys()
    assert all(name.startswith("unet/") for name in frames)
    for name, gradient in both.items():
        wanted = frames[name] if name.startswith("unet/") else clips[name]
        assert torch.allclose(gradient, wanted, atol=1e-6)
    assert any(not torch.allclose(both[name], clips[name], atol=1e-4) for name in frames)


def test_single_frames_see_no_motion(configure_lora, one_video):
    target = shaken(make_target(configure_lora(**one_video)))
    batch = sample_rngs(0, 1, 0, 2, 1)
    samples = [target.sample(rng) for rng in batch]
    with torch.no_grad():
        before = target.appearance_loss(samples, batch)
        assert target.attachment.frames == 4
        target.attachment.detach()
        target.lora_params.attachments["motion"].detach()
        assert torch.equal(target.appearance_loss(samples, batch), before)


@pytest.mark.parametrize("source", ["videos", "reference", "camera"])
def test_it_learns(configure_lora, one_video, source):
    others = {"videos": {}, "reference": one_video, "camera": {"camera": "pan-left", "camera_variants": 2}}
    config = configure_lora(
        max_train_steps=40, batch_size=2, learning_rate=1e-2, text_dropout=0, rank=8, **others[source]
    )
    target = make_target(config)
    fixed = sample_rngs(99, 0, 0, 16, 1)
    with torch.no_grad():
        before = target.loss(fixed).value.item()
    outcome = train(config)
    with torch.no_grad():
        trained = state_of(outcome.output)["weights"].split([p.numel() for p in target.parameters().values()])
        for parameter, values in zip(target.parameters().values(), trained, strict=True):
            parameter.copy_(values.view_as(parameter))
        assert target.loss(fixed).value.item() < 0.9 * before
    assert (outcome.output / "spatial-lora.safetensors").exists() == (source == "reference")


def test_the_looks_of_a_reference_are_a_lora_of_the_base(configure_lora, one_video, emoji_folder):
    outcome = train(configure_lora(**one_video, max_train_steps=2))
    spatial = Lora.load(outcome.output / "spatial-lora.safetensors")
    assert spatial.parts.keys() == {"unet"} and not spatial.moves
    assert Lora.load(outcome.output / PRODUCTS[0]).parts.keys() == {"motion"}
    load_base(emoji_folder).load_lora_weights(outcome.output, weight_name="spatial-lora.safetensors")


def test_samples_show_the_motion_without_the_looks(configure_lora, one_video, tmp_path):
    config = configure_lora(**one_video, validation_inference_steps=2, dropout=0.5)
    target = shaken(make_target(config))
    first = target.samples(tmp_path / "one", 1).read_bytes()
    assert target.samples(tmp_path / "again", 1).read_bytes() == first  # no dropout in samples
    target.lora_params.attachments["unet"].detach()
    assert target.samples(tmp_path / "two", 1).read_bytes() == first
    target.lora_params.attachments["motion"].detach()
    assert target.samples(tmp_path / "three", 1).read_bytes() != first


def test_feed_forward_layers_are_those_of_motiondirector(configure_lora):
    names = {
        name.partition("transformer_blocks.0.")[2]
        for name in make_target(configure_lora(feed_forward=True)).parameters()
    }
    assert {
        "ff.net.0.proj.down",
        "ff.net.2.up",
        "attention_blocks.1.to_out.0.up",
    } <= names and "" not in names
    outcome = train(configure_lora("ff", feed_forward=True, max_train_steps=1))
    assert len(Lora.load(outcome.output / PRODUCTS[0]).parts["motion"]) == 7 * (2 * 4 + 2)


def test_motion_of_any_family(configure_lora, sdxl_folder, motion_folder, sd15_folder):
    config = configure_lora("xl", base=str(sdxl_folder), motion=str(motion_folder), max_train_steps=1)
    assert train(config).finished
    with pytest.raises(WrongKind, match=r"tiny-sd15 brings no motion of its own.*--motion FILE"):
        train(configure_lora("none", base=str(sd15_folder)))


def test_the_noise_is_that_of_the_motion(configure_lora, emoji_folder, tmp_path):
    """The base's own schedule is scaled_linear; the motion's counts unless another one is asked for."""
    assert make_target(configure_lora()).denoiser.pipeline.scheduler.config.beta_schedule == "linear"
    other = configure_lora("other", beta_schedule="squaredcos_cap_v2")
    assert make_target(other).denoiser.pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "learns from one source"),
        ({"videos": "v", "reference": "r", "prompt": "p"}, "learns from one source"),
        ({"reference": "r"}, "reference needs prompt"),
        ({"videos": "v", "prompt": "p"}, "prompt is for reference"),
        ({"reference": "r", "prompt": "p", "camera": "zoom-in"}, "camera makes its clips from videos"),
        ({"videos": "v", "camera_amount": 0.1}, "camera_amount needs camera"),
        ({"videos": "v", "static_input_fraction": 0.5}, "static_input_fraction needs camera"),
        ({"videos": "v", "camera": "zoom-in", "loop": True}, "leave out span and loop"),
        ({"videos": "v", "camera": "zoom"}, "camera is 'zoom', but"),
    ],
)
def test_sources_that_make_no_sense_are_said(fields, words):
    with pytest.raises(RequestError, match=words):
        MotionLoraConfig.parse(base="b", output="o", **fields)


def test_a_missing_reference_is_said_before_models_load(configure_lora, tmp_path):
    config = configure_lora(videos=None, reference=tmp_path / "no.mp4", prompt="p", base="nonsense")
    with pytest.raises(DataError, match=r"no\.mp4 does not exist"):
        train(config)


@pytest.mark.parametrize(("step", "source"), [(2, "videos"), (5, "reference"), (4, "camera")])
def test_interrupted_it_ends_the_same(configure_lora, one_video, step, source):
    others = {"videos": {}, "reference": one_video, "camera": {"camera": "tilt-up"}}[source]

    def make(name: str) -> MotionLoraConfig:
        return configure_lora(name, max_train_steps=7, checkpoint_steps=3, dropout=0.1, **others)

    ends_the_same(make, step, *PRODUCTS)


def test_gradient_checkpointing_changes_memory_only(configure_lora, one_video):
    plain = train(configure_lora("plain", max_train_steps=3, **one_video))
    checked = train(configure_lora("checked", max_train_steps=3, gradient_checkpointing=True, **one_video))
    one, other = (state_of(outcome.output)["weights"] for outcome in (plain, checked))
    assert torch.allclose(one, other, atol=1e-5)


def test_it_trains_in_bf16(configure_lora, one_video):
    whole = train(configure_lora("fp32", max_train_steps=1, **one_video))
    half = train(configure_lora("bf16", max_train_steps=1, precision="bf16", **one_video))
    assert half.loss == pytest.approx(whole.loss, rel=0.05) and half.loss != whole.loss
    assert {tensor.dtype for tensor in state_of(half.output).values()} == {torch.float32}


def write_config(fields: dict[str, Any], path: Path) -> Path:
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    path.write_text(yaml.safe_dump(plain), "utf-8")
    return path


@pytest.mark.slow
def test_killed_with_sigkill_it_ends_the_same(lora_fields, tmp_path):
    lora_fields |= {"max_train_steps": 24, "checkpoint_steps": 7, "output": tmp_path / "killed"}
    config = write_config(lora_fields, tmp_path / "run.yaml")
    process = subprocess.Popen([*RUN, str(config)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_losses(tmp_path / "killed" / "loss.csv")) < 10 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(read_losses(tmp_path / "killed" / "loss.csv")) < 24
    subprocess.run([*RUN, str(config)], check=True)
    whole = write_config(lora_fields | {"output": tmp_path / "whole"}, tmp_path / "whole.yaml")
    subprocess.run([*RUN, str(whole)], check=True)
    same_end(tmp_path / "whole", tmp_path / "killed", *PRODUCTS)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(lora_fields, one_video, tmp_path):
    lora_fields |= one_video | {"max_train_steps": 5}
    one = write_config(lora_fields | {"output": tmp_path / "one", "batch_size": 4}, tmp_path / "one.yaml")
    two = write_config(lora_fields | {"output": tmp_path / "two", "batch_size": 2}, tmp_path / "two.yaml")
    subprocess.run([*RUN, str(one)], check=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "go.py"
    script.write_text("from stillmotion.cli.train import train\ntrain()\n", "utf-8")
    subprocess.run([*launch, str(script), "motion-lora", "--config", str(two)], check=True, timeout=300)
    states = [checkpoint.read_newest(tmp_path / name) for name in ("one", "two")]
    assert [state.facts["processes"] for state in states] == [1, 2]
    assert torch.allclose(states[0].tensors["weights"], states[1].tensors["weights"], atol=1e-4)
