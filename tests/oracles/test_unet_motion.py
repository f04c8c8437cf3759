"""A stock UNet with motion attached against diffusers' UNetMotionModel, and against the 5-D reference."""

from __future__ import annotations

import pytest
import torch
from oracles.peers import asymmetric, fold, inputs, lively, motion_unet, sd15_shaped, sdxl_shaped, unfold
from oracles.reference import ReferenceUNet

from stillmotion.attachments.motion import attach_motion
from stillmotion.motion.module import MotionModules

SHAPES = {"sd15": sd15_shaped, "sdxl": sdxl_shaped, "asymmetric": asymmetric}
CASES = [("sd15", True), ("sd15", False), ("sdxl", False), ("sdxl", True), ("asymmetric", True)]


def attached(unet, net, clip, text, added, group_norm, timestep=321):
    """The stock UNet on the folded clip, text and conditions repeated per frame."""
    frames = clip.shape[2]
    added = added and {name: value.repeat_interleave(frames, 0) for name, value in added.items()}
    with torch.no_grad(), attach_motion(unet, net, frames, group_norm=group_norm):
        text = text.repeat_interleave(frames, 0)
        return unfold(unet(fold(clip), timestep, text, added_cond_kwargs=added).sample, frames)


@pytest.mark.parametrize(("shape", "mid"), CASES)
def test_equals_diffusers(shape, mid):
    unet = SHAPES[shape]()
    net = lively(MotionModules.for_unet(unet, mid=mid))
    clip, text, added = inputs(unet)
    ours = attached(unet, net, clip, text, added, "pooled")
    with torch.no_grad():
        theirs = motion_unet(unet, net)(
            clip, 321, text.repeat_interleave(clip.shape[2], 0), added_cond_kwargs=added
        ).sample
        still = unet(
            fold(clip), 321, text.repeat_interleave(5, 0), added_cond_kwargs=added and _each(added)
        ).sample
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - unfold(still, 5)).abs().max() > 1e-2, "motion did nothing: the comparison proves nothing"


@pytest.mark.parametrize(("shape", "mid"), [("sd15", True), ("sdxl", False)])
def test_one_frame_equals_diffusers_when_asked(shape, mid):
    unet = SHAPES[shape]()
    net = lively(MotionModules.for_unet(unet, mid=mid))
    clip, text, added = inputs(unet, clips=2, frames=1)
    with torch.no_grad():
        theirs = unfold(motion_unet(unet, net)(clip, 321, text, added_cond_kwargs=added).sample, 1)
        still = unet(fold(clip), 321, text, added_cond_kwargs=added).sample
        with attach_motion(unet, net, 1, group_norm="pooled", single_frame=True):
            ours = unet(fold(clip), 321, text, added_cond_kwargs=added).sample
        with attach_motion(unet, net, 1, group_norm="pooled"):
            assert torch.equal(unet(fold(clip), 321, text, added_cond_kwargs=added).sample, still)
        with attach_motion(unet, net, 8, group_norm="pooled") as motion, motion.context.part([5]):
            window = unet(fold(clip), 321, text, added_cond_kwargs=added).sample
    assert (unfold(ours, 1) - theirs.view_as(unfold(ours, 1))).abs().max() < 1e-5
    assert torch.equal(window, ours), "a window of one frame has motion without being asked"
    assert (ours - still).abs().max() > 1e-2


def _each(added):
    return {name: value.repeat_interleave(5, 0) for name, value in added.items()}


@pytest.mark.parametrize(
    ("shape", "mid", "resnet_norm", "motion_norm"),
    [
        pytest.param("sd15", False, "pooled", "per-frame", id="v1"),
        pytest.param("sd15", True, "per-frame", "per-frame", id="v2"),
        pytest.param("sd15", False, "per-frame", "per-frame", id="v3"),
        pytest.param("sdxl", False, "per-frame", "pooled", id="sdxl-beta"),
        pytest.param("asymmetric", True, "pooled", "pooled", id="all-pooled"),
    ],
)
def test_original_parity_equals_the_reference(shape, mid, resnet_norm, motion_norm):
    unet = SHAPES[shape]()
    net = lively(
        MotionModules.for_unet(unet, mid=mid, heads=4, resnet_norm=resnet_norm, motion_norm=motion_norm)
    )
    clip, text, added = inputs(unet)
    reference = ReferenceUNet(
        unet, net.state_dict(), 4, net.spec.norm_groups, resnet_norm == "pooled", motion_norm == "pooled"
    )
    with torch.no_grad():
        expected = reference(clip, 321, text, added)
    ours = attached(unet, net, clip, text, added, "family")
    assert (ours - expected).abs().max() < 2e-5


@pytest.mark.parametrize("column", ["resnet_norm", "motion_norm"])
def test_the_norm_columns_change_the_numbers(column):
    """Trap 5: the difference is silent, so prove that it is there at all."""
    unet = sd15_shaped()
    clip, text, added = inputs(unet)
    results = []
    for norm in ("per-frame", "pooled"):
        net = lively(MotionModules.for_unet(unet, **{column: norm}))
        results.append(attached(unet, net, clip, text, added, "family"))
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_parity_diffusers_overrides_both_columns():
    unet = sd15_shaped()
    clip, text, added = inputs(unet)
    rows = [
        {"resnet_norm": "pooled", "motion_norm": "per-frame"},
        {"resnet_norm": "per-frame", "motion_norm": "pooled"},
    ]
    results = [
        attached(unet, lively(MotionModules.for_unet(unet, **row)), clip, text, added, "pooled")
        for row in rows
    ]
    assert torch.equal(*results)


def test_channels_last_images_give_the_same():
    unet = sd15_shaped()
    net = lively(MotionModules.for_unet(unet))
    clip, text, added = inputs(unet)
    expected = attached(unet, net, clip, text, added, "family")
    unet.to(memory_format=torch.channels_last)
    assert (attached(unet, net, clip, text, added, "family") - expected).abs().max() < 1e-5
