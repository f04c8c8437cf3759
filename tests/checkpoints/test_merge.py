"""Baked equals attached, mixed equals the mean, and weight 0 leaves every bit."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from loras import motion_parts, random_parts
from safetensors.torch import load_file
from tiny import tiny_motion, tiny_pipeline, tiny_unet
from torch import Tensor, nn

from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.convert import load_model
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.merge import bake, merge, mix
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Mismatch, OutputError, RequestError, StillmotionWarning, WrongKind
from stillmotion.lora.deltas import LayerDelta

ALGORITHMS = {
    "lora": {},
    "locon": {"convolutions": True},
    "loha": {"algorithm": "loha"},
    "lokr": {"algorithm": "lokr", "convolutions": False},
    "full": {"algorithm": "full"},
    "dora": {"magnitude": "rows"},
}


def states(pipeline) -> dict[str, Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        f"{name}.{key}": t.clone() for name, part in parts.items() for key, t in part.state_dict().items()
    }


def motion_model(seed: int = 1, **columns) -> MotionModel:
    net = tiny_motion(seed, **columns)
    return MotionModel.from_state(net.family, net.state_dict())


@torch.no_grad()
def drawn(unet: nn.Module) -> Tensor:
    torch.manual_seed(3)
    return unet(torch.randn(4, 4, 8, 8), 7, torch.randn(4, 5, 32)).sample


@torch.no_grad()
def read(encoder: nn.Module) -> Tensor:
    return encoder(torch.arange(7)[None]).last_hidden_state


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_baked_lora_is_the_attached_one(algorithm: str) -> None:
    pipeline = tiny_pipeline("sd15")
    lora = Lora(random_parts(pipeline, alpha=lambda path: 1.0, **ALGORITHMS[algorithm]))
    plain = drawn(pipeline.unet)
    with lora.attach(pipeline, weight=0.7):
        attached, text = drawn(pipeline.unet), read(pipeline.text_encoder)
    bake(pipeline, {lora: 0.7})
    assert (attached - plain).abs().max() > 1e-2
    assert torch.allclose(drawn(pipeline.unet), attached, atol=1e-5)
    assert torch.allclose(read(pipeline.text_encoder), text, atol=1e-5)


def test_a_change_of_the_bias_goes_into_the_bias(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("sd15")
    layers = {path: pipeline.unet.get_submodule(path) for path in ("conv_in", "mid_block.resnets.0.conv1")}
    diffs = {
        path: {"diff": torch.randn_like(m.weight), "bias": torch.randn_like(m.bias)}
        for path, m in layers.items()
    }
    lora = Lora({"unet": {path: LayerDelta("full", tensors) for path, tensors in diffs.items()}}, "full")
    with lora.attach(pipeline, weight=0.5):
        attached = drawn(pipeline.unet)
    bake(pipeline, {lora: 0.5})
    assert torch.allclose(drawn(pipeline.unet), attached, atol=1e-5)
    query = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    bare = {"diff": torch.zeros_like(pipeline.unet.get_submodule(query).weight), "bias": torch.ones(64)}
    with pytest.raises(Mismatch, match="full adds a bias to a Linear of the model that has none"):
        bake(pipeline, {Lora({"unet": {query: LayerDelta("full", bare)}}, "full"): 1.0})


def test_several_loras_with_weights_by_part_and_block() -> None:
    pipeline = tiny_pipeline("sd15")
    weights = {
        Lora(random_parts(pipeline, seed=1)): "unet:0.5,text:0.2",
        Lora(random_parts(pipeline, seed=2, magnitude="rows")): {"down": 0.3, "up": 1.0},
    }
    one, two = (lora.attach(pipeline, weight=weight) for lora, weight in weights.items())
    with one, two:
        attached = drawn(pipeline.unet)
    bake(pipeline, weights)
    assert torch.allclose(drawn(pipeline.unet), attached, atol=1e-5)


def test_a_motion_lora_in_a_motion_module() -> None:
    motion, unet = motion_model(), tiny_unet()
    lora = Lora(motion_parts(motion))
    with lora.attach(None, motion), attach_motion(unet, motion, 4):
        attached = drawn(unet)
    bake(motion, {lora: 1.0})
    with attach_motion(unet, motion, 4):
        assert torch.allclose(drawn(unet), attached, atol=1e-5)


def test_weight_0_leaves_every_bit(tmp_path: Path) -> None:
    file = save_single_file(tiny_pipeline("sd15"), tmp_path / "a.safetensors", torch.float16)
    other = save_single_file(tiny_pipeline("sd15", seed=1), tmp_path / "b.safetensors")
    lora = Lora(random_parts(tiny_pipeline("sd15"))).save(tmp_path / "l.safetensors")
    out = merge(file, tmp_path / "out.safetensors", {str(lora): 0.0}, {str(other): 0.0})
    before, after = load_file(file), load_file(out)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    baked = load_file(merge(file, tmp_path / "c.safetensors", {str(lora): 0.5}))
    assert any(not torch.equal(before[key], baked[key]) for key in before)


def test_half_and_half_is_the_mean(tmp_path: Path) -> None:
    pipelines = [tiny_pipeline("sd15", seed) for seed in (0, 1, 2)]
    one, two, three = (
        str(save_single_file(p, tmp_path / f"{i}.safetensors")) for i, p in enumerate(pipelines)
    )
    a, b, c = map(states, pipelines)
    half = states(load_base(merge(one, tmp_path / "half.safetensors", others={two: 0.5})))
    assert all(torch.allclose(half[key], (a[key] + b[key]) / 2, atol=1e-6) for key in a)
    mixed = states(load_base(merge(one, tmp_path / "mixed", others={two: 0.3, three: 0.2})))
    assert all(torch.allclose(mixed[k], 0.5 * a[k] + 0.3 * b[k] + 0.2 * c[k], atol=1e-6) for k in a)
    whole = states(load_base(merge(one, tmp_path / "whole", others={two: 1.0})))
    assert all(torch.equal(whole[key], b[key]) for key in b)


def test_motion_modules_mix_too(tmp_path: Path) -> None:
    models = [motion_model(seed) for seed in (1, 2)]
    one, two = (str(model.save(tmp_path / f"{i}.safetensors")) for i, model in enumerate(models))
    mixed = MotionModel.load(merge(one, tmp_path / "out", others={two: 0.25})).state_dict()
    a, b = (model.state_dict() for model in models)
    assert all(torch.allclose(mixed[key], 0.75 * a[key] + 0.25 * b[key], atol=1e-6) for key in a)


SD15 = partial(tiny_pipeline, "sd15")


def wider():
    pipeline = tiny_pipeline("sd15")
    pipeline.register_modules(unet=tiny_unet(block_out_channels=(32, 96)))
    return pipeline


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (SD15, lambda: tiny_pipeline("sdxl"), "cannot be mixed: parts .* in the first"),
        (SD15, motion_model, "cannot be mixed: parts .*unet.* in the first, motion in the other"),
        (SD15, wider, r"not of the same architecture .*: .* is \(.*\) in the first and \(.*\) in the other"),
        (
            motion_model,
            lambda: motion_model(motion_norm="pooled"),
            "mixed: motion_norm per-frame in the first, pooled",
        ),
        (motion_model, lambda: motion_model(mid=False), "mid_block.* in the first and missing in the other"),
    ],
)
def test_other_architectures_are_refused_untouched(first, second, words) -> None:
    model = first()
    before = {key: t.clone() for key, t in _all(model).items()}
    with pytest.raises(Mismatch, match=words):
        mix(model, second(), 0.5)
    assert all(torch.equal(before[key], tensor) for key, tensor in _all(model).items())


def _all(model) -> dict[str, Tensor]:
    return model.state_dict() if isinstance(model, MotionModel) else states(model)


def test_predictions_of_noise_and_velocity_are_not_mixed() -> None:
    velocity = tiny_pipeline("sd15")
    velocity.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(Mismatch, match="prediction_type epsilon in the first, v_prediction in the other"):
        mix(tiny_pipeline("sd15"), velocity, 0.5)


def test_loras_go_where_they_belong(tmp_path: Path) -> None:
    pan, style = Lora(motion_parts(tiny_motion()), "pan"), Lora(random_parts(tiny_pipeline("sd15")), "style")
    with pytest.raises(
        WrongKind, match="pan is a motion LoRA.*the model is a text-to-image model: .* a motion"
    ):
        bake(tiny_pipeline("sd15"), {pan: 1.0})
    with pytest.raises(
        WrongKind, match="style is a LoRA.*but the model is a motion module: .* a text-to-image"
    ):
        bake(motion_model(), {style: 1.0})
    with pytest.raises(RequestError, match="style has a weight along the frames"):
        bake(tiny_pipeline("sd15"), {style: "0:0,15:1"})
    with pytest.raises(Mismatch, match="does not fit the UNet"):
        bake(tiny_pipeline("sdxl"), {Lora({"unet": style.parts["unet"]}, "style"): 1.0})


def test_shares_and_targets_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    for others, words in ({"b": 1.5}, "from 0 to 1"), ({"b": 0.7, "c": 0.7}, "1.4 together"):
        with pytest.raises(RequestError, match=words):
            merge("nowhere", tmp_path / "out.safetensors", others=others)
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(OutputError, match="overwrite=True"):
        merge("nowhere", tmp_path / "there.safetensors", others={"b": 0.5})


def test_a_model_keeps_its_precision(tmp_path: Path) -> None:
    file = save_single_file(tiny_pipeline("sd15"), tmp_path / "a.safetensors", torch.float16)
    other = save_single_file(tiny_pipeline("sd15", seed=1), tmp_path / "b.safetensors")
    out = merge(file, tmp_path / "out.safetensors", others={str(other): 0.5})
    assert load_model(out).unet.dtype == torch.float16
    assert load_model(merge(file, tmp_path / "w", dtype=torch.float32)).unet.dtype == torch.float32


@pytest.mark.parametrize("words", [{"bundle_emb.sks.clip_l": torch.randn(2, 32)}, {}])
def test_words_that_a_merged_model_loses_are_named(words: dict[str, Tensor], tmp_path: Path) -> None:
    pipeline = tiny_pipeline("sd15")
    base = save_single_file(pipeline, tmp_path / "base.safetensors")
    lora = Lora(random_parts(pipeline), bundled=words).save(tmp_path / "it.safetensors")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        merge(base, tmp_path / "out.safetensors", {str(lora): 1.0})
    ours = [str(each.message) for each in told if each.category is StillmotionWarning]
    assert len(ours) == len(words) and all(
        "it.safetensors brings words for prompts ('sks')" in t for t in ours
    )
