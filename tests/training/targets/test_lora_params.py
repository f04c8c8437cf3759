"""LoRAs that go on from a file: the same weights, or a sentence that says what does not fit."""

from __future__ import annotations

import pytest
import torch
from lora_targets import make_target, shaken

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.errors import Mismatch, RequestError
from stillmotion.training.config.images import DreamBoothConfig
from stillmotion.training.targets.lora_params import LoraParameters, attention_layers, every_layer


@pytest.fixture
def before(configure_lora, tmp_path):
    """A target with weights of its own, and the motion LoRA of them."""
    target = shaken(make_target(configure_lora("before", alpha=3.0)))
    return target, target.lora_params.lora(target.parameters()).save(tmp_path / "before.safetensors", "peft")


def test_training_goes_on_from_a_lora(configure_lora, before):
    target, file = before
    again = make_target(configure_lora(alpha=3.0, initial_lora=str(file)))
    assert again.parameters().keys() == target.parameters().keys()
    for name, weight in again.parameters().items():
        assert torch.equal(weight, target.parameters()[name])


def test_another_alpha_makes_the_same_change(configure_lora, before):
    target, file = before
    again = make_target(configure_lora(alpha=None, initial_lora=str(file)))
    theirs = target.lora_params.lora(target.parameters()).parts["motion"]
    for path, delta in again.lora_params.lora(again.parameters()).parts["motion"].items():
        ends = theirs[path].tensors
        shape = ends["up"].shape[0], ends["down"].shape[1]
        assert torch.allclose(delta.dense(shape), theirs[path].dense(shape), atol=1e-6)


def test_layers_that_are_new_stay_fresh(configure_lora, before):
    _, file = before
    wider = make_target(configure_lora(feed_forward=True, initial_lora=str(file))).parameters()
    ups = {name: weight for name, weight in wider.items() if name.endswith(".up")}
    assert {name for name, weight in ups.items() if weight.any()} == {
        name for name in ups if ".ff." not in name
    }


@pytest.mark.parametrize("rank", [1, 5])
def test_another_rank_is_refused(configure_lora, before, rank):
    with pytest.raises(Mismatch, match=f"before.* at motion .*rank 2, but .*rank {rank} is trained"):
        make_target(configure_lora(rank=rank, initial_lora=str(before[1])))


def test_nothing_of_the_lora_is_lost(configure_lora, tmp_path):
    more = shaken(make_target(configure_lora("more", feed_forward=True)))
    file = more.lora_params.lora(more.parameters()).save(tmp_path / "more.safetensors")
    with pytest.raises(Mismatch, match=r"14 layers that are not trained here.*feed_forward"):
        make_target(configure_lora(initial_lora=str(file)))


def test_text_encoders_and_convolutions_too(configure_lora, sd15_folder, tmp_path):
    """Through kohya's layout, with the names that text encoders have in files."""
    pipeline = load_base(sd15_folder, torch.float32)
    networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    first = LoraParameters(networks, every_layer, configure_lora(seed=1))
    for weight in first.parameters().values():
        torch.nn.init.normal_(weight)
    file = first.lora(first.parameters()).save(tmp_path / "style.safetensors", "kohya")
    first.detach()
    second = LoraParameters(networks, every_layer, configure_lora(seed=2, initial_lora=str(file)))
    for name, weight in second.parameters().items():
        assert torch.equal(weight, first.parameters()[name])
    second.detach()
    with pytest.raises(Mismatch, match=r"not trained here"):
        LoraParameters(networks, attention_layers, configure_lora(initial_lora=str(file)))
    assert Lora.load(file).parts.keys() == set(networks)


def test_a_whole_model_does_not_begin_from_a_lora():
    with pytest.raises(RequestError, match="initial_lora needs method lora"):
        DreamBoothConfig.parse(
            base="b", output="o", instance_images="i", instance_prompt="p", method="full", initial_lora="l"
        )
