"""The domain adapter: single frames in, an image LoRA out that is on, frozen, while motion trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from endings import ends_the_same, sheet_size, state_of
from PIL import Image
from safetensors.torch import load_file, save_file

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import WrongKind
from stillmotion.training import train
from stillmotion.training.config import DomainAdapterConfig, MotionTrainConfig
from stillmotion.training.engine.rng import sample_rngs
from stillmotion.training.targets.domain_adapter import DomainAdapterTarget
from stillmotion.training.targets.motion import MotionTarget

PRODUCTS = ("adapter.safetensors", "adapter-peft.safetensors")


@pytest.fixture
def configure_adapter(settings: dict[str, Any], tmp_path: Path) -> Callable[..., DomainAdapterConfig]:
    plain = {name: value for name, value in settings.items() if name not in ("frames", "stride")}

    def make(name: str = "run", **fields: Any) -> DomainAdapterConfig:
        return DomainAdapterConfig.parse(**(plain | {"output": tmp_path / name, "rank": 2} | fields))

    return make


@pytest.fixture(scope="session")
def adapter(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter that does something."""
    plain = {name: value for name, value in settings.items() if name not in ("frames", "stride")}
    output = tmp_path_factory.mktemp("adapter")
    train(DomainAdapterConfig.parse(**plain | {"output": output, "rank": 2, "learning_rate": 5e-2}))
    return output / "adapter.safetensors"


def target_of(config: DomainAdapterConfig | MotionTrainConfig, make: type = DomainAdapterTarget) -> Any:
    return make(config, Accelerator(cpu=True), lambda sentence: None)


def test_from_clips_to_files(configure_adapter):
    outcome = train(configure_adapter(validation_steps=6, validation_inference_steps=2))
    with Image.open(outcome.output / "samples" / "step-00000006.png") as sheet:
        assert sheet.size == sheet_size(rows=4, columns=8)
    found = identify(outcome.output / PRODUCTS[0])
    assert (found.kind, found.base, found.layout) == ("domain-adapter", None, "attention-processor")
    keys = load_file(outcome.output / PRODUCTS[0])
    place = "up_blocks.1.attentions.1.transformer_blocks.0"
    for attention in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v", "to_out"):
            assert f"{place}.{attention}.processor.{name}_lora.up.weight" in keys
    one, other = (Lora.load(outcome.output / name).parts["unet"] for name in PRODUCTS)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k].tensors["up"], other[k].tensors["up"]) for k in one)


def test_plain_diffusers_computes_the_same_with_it(adapter, sd15_folder):
    """Oracle: load_lora_weights of the peft file, and our hooks with the original layout."""
    theirs, ours = load_base(sd15_folder), load_base(sd15_folder)
    theirs.load_lora_weights(adapter.parent, weight_name="adapter-peft.safetensors")
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
    with torch.no_grad():
        without = ours.unet(latents, 5, text).sample
        wanted = theirs.unet(latents, 5, text).sample
        with Lora.load(adapter).attach(ours):
            assert torch.allclose(ours.unet(latents, 5, text).sample, wanted, atol=1e-5)
        assert torch.equal(ours.unet(latents, 5, text).sample, without)
        with Lora.load(adapter).attach(ours, weight=0.5) as half:
            assert not torch.allclose(ours.unet(latents, 5, text).sample, wanted, atol=1e-4)
            half.weight = 1.0
            assert torch.allclose(ours.unet(latents, 5, text).sample, wanted, atol=1e-5)
    assert (wanted - without).abs().max() > 1e-3


def test_it_takes_single_frames_of_all_clips_and_stills(configure_adapter, clips, tmp_path):
    target = target_of(configure_adapter())
    samples = [target.sample(rng) for rng in sample_rngs(0, 0, 0, 100, 1)]
    assert {tuple(sample.latents.shape) for sample in samples} == {(1, 4, 8, 8)}
    assert len({sample.latents.numpy().tobytes() for sample in samples}) > 20
    with Image.open(next(clips.glob("*.webp"))) as image:
        image.convert("RGB").save(tmp_path / "still.jpg")
    assert [clip.length for clip in target_of(configure_adapter("s", videos=tmp_path)).clips] == [1]


def test_it_learns_and_the_base_stays(configure_adapter, sd15_folder):
    config = configure_adapter(max_train_steps=60, learning_rate=1e-2, text_dropout=0, rank=8)
    target = target_of(config)
    fixed = sample_rngs(99, 0, 0, 32, 1)
    with torch.no_grad():
        before = target.loss(fixed).value.item()
    target.loss(fixed[:2]).value.backward()
    assert all(parameter.grad is None for parameter in target.denoiser.unet.parameters())
    state, wanted = target.denoiser.unet.state_dict(), load_base(sd15_folder).unet.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
    outcome = train(config)
    parameters = target.parameters()
    trained = state_of(outcome.output)["weights"].split([p.numel() for p in parameters.values()])
    with torch.no_grad():
        for parameter, values in zip(parameters.values(), trained, strict=True):
            parameter.copy_(values.view_as(parameter))
        assert target.loss(fixed).value.item() < 0.95 * before


@pytest.mark.parametrize("step", [2, 5])
def test_interrupted_it_ends_the_same(configure_adapter, step):
    def make(name: str) -> DomainAdapterConfig:
        return configure_adapter(name, max_train_steps=7, checkpoint_steps=3, dropout=0.1)

    ends_the_same(make, step, *PRODUCTS)


def test_gradient_checkpointing_changes_memory_only(configure_adapter):
    plain = train(configure_adapter("plain", max_train_steps=3))
    checked = train(configure_adapter("checked", max_train_steps=3, gradient_checkpointing=True))
    one, other = (state_of(outcome.output)["weights"] for outcome in (plain, checked))
    assert torch.allclose(one, other, atol=1e-5)


def test_motion_trains_on_top_of_it_and_does_not_hold_it(configure, adapter):
    batch = sample_rngs(0, 0, 0, 2, 1)
    plain = target_of(configure("plain"), MotionTarget)
    with_it = target_of(configure("with", domain_adapter=adapter), MotionTarget)
    off = target_of(configure("off", domain_adapter=adapter, domain_adapter_scale=0.0), MotionTarget)
    assert with_it.parameters().keys() == plain.parameters().keys()
    with torch.no_grad():
        assert torch.equal(off.loss(batch).value, plain.loss(batch).value)
        assert not torch.allclose(with_it.loss(batch).value, plain.loss(batch).value, rtol=1e-4)
        with Lora.load(adapter).attach(plain.pipeline):
            assert torch.allclose(with_it.loss(batch).value, plain.loss(batch).value, rtol=1e-5)
    with_it.loss(batch).value.backward()
    lora_layers = with_it.adapter.lora_layers.values()
    assert all(
        p.grad is None and not p.requires_grad for lora_layer in lora_layers for p in lora_layer.parameters()
    )
    outcome = train(configure("run", domain_adapter=adapter, max_train_steps=2))
    model = MotionModel.load(outcome.output / "motion")
    assert model.state_dict().keys() == plain.motion.state_dict().keys()


def test_a_motion_lora_is_no_domain_adapter(configure, tmp_path):
    lora = tmp_path / "motion-lora.safetensors"
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    key = f"{block}.processor.to_q_lora"
    save_file({f"{key}.down.weight": torch.ones(2, 32), f"{key}.up.weight": torch.ones(32, 2)}, lora)
    with pytest.raises(WrongKind, match="domain_adapter takes a LoRA of the image model"):
        train(configure("run", domain_adapter=lora))


def test_fine_tuning_keeps_the_family_and_says_where_it_starts(configure, motion_folder, capsys):
    """Norms, positions and noise are those of the given motion, unless another noise is asked for."""
    model = MotionModel.load(motion_folder)
    folder = motion_folder.parent / "of-a-family"
    model.family = model.family.updated(
        name="mine", motion_norm="pooled", beta_schedule="scaled_linear", beta_end=0.02
    )
    model.save(folder)
    outcome = train(configure("run", motion=str(folder), max_train_steps=1, learning_rate=1e-3))
    family = MotionModel.load(outcome.output / "motion").family
    spec, schedule = family.config, family.schedule
    assert (spec.name, spec.motion_norm, spec.positions) == ("mine", "pooled", 32)
    assert (schedule.beta_schedule, schedule.beta_start, schedule.beta_end) == (
        "scaled_linear",
        0.00085,
        0.02,
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "of-a-family: mine motion, 32 positions, pooled norms, scaled_linear betas 0.00085 to 0.02" in said
    assert "1e-05 to 0.0001 is usual" in said
    told = train(configure("told", motion=str(folder), max_train_steps=1, beta_schedule="linear"))
    assert MotionModel.load(told.output / "motion").family.schedule.beta_schedule == "linear"
    capsys.readouterr()
    fresh = train(configure("fresh", max_train_steps=1))
    assert "Starting from" not in capsys.readouterr().err
    assert MotionModel.load(fresh.output / "motion").family.schedule.beta_schedule == "linear"
