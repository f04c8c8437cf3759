"""Adapters as hooks: weights of blocks and frames, several at once, nothing left behind."""

from __future__ import annotations

import pytest
import torch
from loras import random_parts
from tiny import tiny_motion, tiny_pipeline
from torch import Tensor, nn

from stillmotion.attachments.lora import attach_deltas
from stillmotion.attachments.motion import attach_motion
from stillmotion.errors import Mismatch

PIPELINE = tiny_pipeline()
DELTAS = random_parts(PIPELINE, ("unet",), spread=0.2)["unet"]


@torch.no_grad()
def seen(unet: nn.Module, frames: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x, text = (torch.randn(frames, *size, generator=generator) for size in ((4, 8, 8), (7, 32)))
    return unet(x.to(dtype), 5, text.to(dtype)).sample


@pytest.fixture
def unet():
    return tiny_pipeline().unet


def test_weight_nothing_changes_nothing(unet) -> None:
    before = seen(unet)
    for weight in (0, "unet:0", "0:0,3:0", {"down": 0, "mid": 0, "up": 0}):
        with attach_deltas(unet, DELTAS, weight, frames=4):
            assert torch.equal(seen(unet), before)


def test_everything_comes_off_after_an_exception(unet) -> None:
    before, keys = seen(unet), list(unet.state_dict())
    with pytest.raises(KeyError), attach_deltas(unet, DELTAS):
        raise KeyError
    assert torch.equal(seen(unet), before) and list(unet.state_dict()) == keys
    assert not any(module._forward_hooks for module in unet.modules())


def test_several_add_up_in_any_order(unet) -> None:
    other = random_parts(PIPELINE, ("unet",), seed=9, spread=0.2)["unet"]
    with attach_deltas(unet, DELTAS, 0.5), attach_deltas(unet, other, -0.25):
        ours = seen(unet)
    with attach_deltas(unet, other, -0.25), attach_deltas(unet, DELTAS, 0.5):
        torch.testing.assert_close(seen(unet), ours, rtol=1e-5, atol=1e-5)
    for path, delta in DELTAS.items():
        layer = unet.get_submodule(path)
        layer.weight.data = other[path].apply(delta.apply(layer.weight, 0.5), -0.25)
    torch.testing.assert_close(seen(unet), ours, rtol=1e-5, atol=1e-5)


def test_taken_off_in_another_order_than_put_on(unet) -> None:
    before = seen(unet)
    first, second = attach_deltas(unet, DELTAS), attach_deltas(unet, DELTAS, 0.5)
    first.detach()
    with attach_deltas(unet, DELTAS, 0.5) as again:
        again.detach()
        half = seen(unet)
    second.detach()
    assert torch.equal(seen(unet), before)
    with attach_deltas(unet, DELTAS, 0.5):
        assert torch.equal(seen(unet), half)


def test_each_block_has_its_weight(unet) -> None:
    weight = {"down": 0.5, "mid": 0, "up_blocks.1": 2, "up": 7}
    weights = {"down_blocks": 0.5, "mid_block": 0.0, "up_blocks": 2.0}
    with attach_deltas(unet, DELTAS, weight):
        ours = seen(unet)
    for path, delta in DELTAS.items():
        layer = unet.get_submodule(path)
        layer.weight.data = delta.apply(layer.weight, weights[path.partition(".")[0]])
    torch.testing.assert_close(ours, seen(unet), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["lora", "loha"])
def test_each_frame_is_that_of_a_run_with_its_weight(unet, algorithm) -> None:
    deltas = random_parts(PIPELINE, ("unet",), algorithm=algorithm, spread=0.3)["unet"]
    with attach_deltas(unet, deltas, "0:0,2:1,unet:0.5", frames=4):
        ours = seen(unet)
        twice = torch.cat([seen(unet, 8)[:4], seen(unet, 8)[4:]])  # guidance: two clips in a batch
    assert torch.equal(ours[0], seen(unet)[0])
    for frame, weight in enumerate((0.0, 0.25, 0.5, 0.5)):
        with attach_deltas(unet, deltas, weight):
            torch.testing.assert_close(seen(unet)[frame], ours[frame], rtol=1e-5, atol=1e-5)
            for clip in (0, 4):
                torch.testing.assert_close(
                    seen(unet, 8)[clip + frame], twice[clip + frame], rtol=1e-5, atol=1e-5
                )


def test_images_that_make_no_clip_get_the_mean(unet) -> None:
    with attach_deltas(unet, DELTAS, "0:0,3:1", frames=4):
        ours = seen(unet, 3)
    with attach_deltas(unet, DELTAS, 0.5):
        torch.testing.assert_close(seen(unet, 3), ours, rtol=1e-5, atol=1e-5)


def test_they_follow_the_network_to_its_precision(unet) -> None:
    unet.to(torch.bfloat16)
    before = seen(unet, dtype=torch.bfloat16)
    with attach_deltas(unet, DELTAS, "0:0.5,3:1", frames=4):
        assert seen(unet, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert not torch.allclose(seen(unet, dtype=torch.bfloat16), before, atol=0.1)
    assert torch.equal(seen(unet, dtype=torch.bfloat16), before)


def test_they_ride_beside_motion(unet) -> None:
    motion = tiny_motion()
    merged = tiny_pipeline().unet
    for path, delta in DELTAS.items():
        layer = merged.get_submodule(path)
        layer.weight.data = delta.apply(layer.weight)
    with attach_motion(merged, motion, 4):
        wanted = seen(merged)
    with attach_deltas(unet, DELTAS), attach_motion(unet, motion, 4):
        torch.testing.assert_close(seen(unet), wanted, rtol=1e-5, atol=1e-5)
    with attach_motion(unet, motion, 4), attach_deltas(unet, DELTAS):
        torch.testing.assert_close(seen(unet), wanted, rtol=1e-5, atol=1e-5)


def test_layers_that_are_not_there_are_named(unet) -> None:
    path, delta = next(iter(DELTAS.items()))
    with pytest.raises(Mismatch, match="there is no layer nowhere.to_q in UNet2DConditionModel"):
        attach_deltas(unet, {"nowhere.to_q": delta})
    with pytest.raises(Mismatch, match=r"conv_in: a change of .* does not fit a weight of"):
        attach_deltas(unet, {path: delta, "conv_in": delta})
    assert not any(module._forward_hooks for module in unet.modules())
