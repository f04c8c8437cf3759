"""Attachments of an Animator: built once, awake for a clip, asleep and without effect between clips."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from loras import motion_parts, random_parts
from tiny import tiny_motion, tiny_pipeline
from torch import Tensor

from stillmotion.attachments.frames import FrameContext
from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.errors import AttachError, RequestError
from stillmotion.lora import layers
from stillmotion.sampling.animator import Animator

SETTINGS = {"seed": 1, "frames": 3, "num_inference_steps": 2}


def made(pipeline=None, loras=True, **options) -> Animator:
    pipeline, motion = pipeline or tiny_pipeline(), tiny_motion(resnet_norm="pooled")
    parts = random_parts(pipeline, spread=0.1, **options)
    found = {Lora(parts): 0.5, Lora(motion_parts(motion, spread=0.1)): 0.5} if loras else {}
    return Animator(pipeline, motion, loras=found)


@torch.no_grad()
def still(unet) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(3, *size, generator=generator) for size in ((4, 8, 8), (7, 32)))
    return unet(x, 321, text).sample


def frames(animator: Animator, **settings) -> np.ndarray:
    return animator.animate("a rocket", **SETTINGS | settings).frames


@pytest.fixture
def builds(monkeypatch) -> list[int]:
    """One entry for each LoRA layer that is made."""
    seen: list[int] = []
    check = layers.check_layer
    monkeypatch.setattr(layers, "check_layer", lambda *a: (seen.append(1), check(*a)))
    return seen


def test_layers_are_built_at_the_first_clip_and_never_again(builds) -> None:
    ours = made()
    assert not builds, "not when it is made"
    first = frames(ours)
    count = len(builds)
    assert count > 0
    assert np.array_equal(frames(ours), first) and not np.array_equal(frames(ours, seed=2), first)
    assert np.array_equal(frames(ours), frames(made())), "clips in between leave no trace"
    assert len(builds) == 2 * count, "those of the other Animator"
    ours.animate("a cat", **SETTINGS | {"lora_alpha": "ignore"})
    assert len(builds) == 3 * count, "alpha is in the layers"


def test_between_clips_the_pipeline_is_plain(builds) -> None:
    ours, plain = made(), still(tiny_pipeline().unet)
    for settings in ({}, {"frames": 2}, {"frames": 1}, {"motion_scale": 0.5, "group_norm": "pooled"}):
        frames(ours, **settings)
        assert torch.equal(still(ours.pipeline.unet), plain)
        assert list(ours.pipeline.unet.state_dict()) == list(tiny_pipeline().unet.state_dict())
        assert FrameContext.on(ours.pipeline.unet).total == 1


def test_each_clip_has_its_own_settings() -> None:
    ours = made()
    for settings in ({}, {"motion_scale": 0.3}, {"group_norm": "pooled"}, {"frames": 2}, {}):
        assert np.array_equal(frames(ours, **settings), frames(made(), **settings))


def test_weights_may_change_between_clips() -> None:
    ours, weaker = made(), made()
    frames(ours)
    for animator in (ours, weaker):
        animator.loras = dict.fromkeys(animator.loras, 0.1)
    assert np.array_equal(frames(ours), frames(weaker))


@pytest.mark.parametrize("magnitude", [None, "rows"])
def test_weights_of_the_base_may_change_between_clips(magnitude) -> None:
    """DoRA depends on them; its layers are computed again where they are others."""
    ours, fresh = made(magnitude=magnitude), made(magnitude=magnitude)
    frames(ours)
    for animator in (ours, fresh):
        for layer in animator.pipeline.unet.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.data += 0.05
    assert np.array_equal(frames(ours), frames(fresh))


def test_another_unet_or_dtype_is_noticed() -> None:
    ours, other = made(), tiny_pipeline(seed=5)
    frames(ours)
    old, ours.pipeline.unet = ours.pipeline.unet, other.unet
    fresh = made()
    fresh.pipeline.unet = tiny_pipeline(seed=5).unet
    assert np.array_equal(frames(ours), frames(fresh))
    assert not any(module._forward_hooks for module in old.modules())
    for animator in (ours, fresh):
        animator.pipeline.unet.to(torch.bfloat16)
    assert np.array_equal(frames(ours), frames(fresh))


def test_two_animators_of_one_pipeline_do_not_meet() -> None:
    pipeline = tiny_pipeline()
    one, two = made(pipeline), Animator(pipeline, tiny_motion(3, positions=2))
    alone = [frames(made()), frames(Animator(tiny_pipeline(), tiny_motion(3, positions=2)), frames=2)]
    for _ in range(2):
        assert np.array_equal(frames(one), alone[0]) and np.array_equal(frames(two, frames=2), alone[1])


def test_what_a_user_attached_stays_and_acts() -> None:
    ours, plain = made(loras=False), made(loras=False)
    frames(ours)
    with attach_motion(ours.pipeline, tiny_motion(7), 4) as own:
        both = frames(ours, frames=4)
        assert own.frames == 4 and own.enabled
    assert not np.array_equal(both, frames(plain, frames=4))
    assert np.array_equal(frames(ours, frames=4), frames(plain, frames=4))


def test_a_copy_of_an_animator_draws_alone() -> None:
    ours = made()
    expected, twin = frames(ours), copy.deepcopy(ours)
    assert np.array_equal(frames(twin), expected)
    plain = still(tiny_pipeline().unet)
    assert torch.equal(still(twin.pipeline.unet), plain) and torch.equal(still(ours.pipeline.unet), plain)


def test_a_unet_compiled_in_between_is_refused() -> None:
    ours = made(loras=False)
    frames(ours)
    ours.pipeline.unet.compile(backend="eager")
    with pytest.raises(AttachError, match="attach to the plain UNet, then compile"):
        frames(ours)


def test_one_frame_has_motion_when_asked() -> None:
    """Under the schedule of the motion; the oracle of the numbers is tests/oracles/test_unet_motion.py."""
    ours = made(loras=False)
    still, moved = (frames(ours, frames=1, single_frame_motion=each) for each in ("skip", "run"))
    assert not np.array_equal(still, moved)
    assert np.array_equal(frames(ours, single_frame_motion="run"), frames(ours)), "clips have it anyway"
    with pytest.raises(RequestError, match="single_frame_motion is run, but only a text-to-image model"):
        frames(Animator(tiny_pipeline()), frames=1, single_frame_motion="run")
