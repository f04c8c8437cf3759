"""Motion, a LoRA and a ControlNet on one UNet against UNetMotionModel with all three by its own means."""

from __future__ import annotations

import copy

import torch
from diffusers import ControlNetModel
from loras import random_parts
from oracles.peers import fold, inputs, lively, motion_unet, sd15_shaped, unfold
from torch import nn

import stillmotion as sm
from stillmotion.attachments.frames import FrameContext
from stillmotion.motion.module import MotionModules

FRAMES, CLIPS = 5, 2


class OfUnet:
    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


def controlnet(unet: nn.Module) -> ControlNetModel:
    torch.manual_seed(4)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32)).eval()
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.1)
    return net


@torch.no_grad()
def test_motion_lora_and_control_together_equal_diffusers() -> None:
    unet = sd15_shaped()
    net, control = lively(MotionModules.for_unet(unet)), controlnet(unet)
    lora = sm.Lora(random_parts(OfUnet(unet), ("unet",), spread=0.1))
    clip, text, _ = inputs(unet, clips=CLIPS, frames=FRAMES)
    texts = text.repeat_interleave(FRAMES, 0)
    side = clip.shape[-1] * 2
    hints = torch.rand(FRAMES, 3, side, side, generator=torch.Generator().manual_seed(5))

    merged = copy.deepcopy(unet)
    for path, delta in lora.parts["unet"].items():
        layer = merged.get_submodule(path)
        layer.weight.copy_(delta.apply(layer.weight, 0.7))
    down, mid = control(
        fold(clip), 321, texts, hints.repeat(CLIPS, 1, 1, 1), conditioning_scale=0.5, return_dict=False
    )
    theirs = motion_unet(merged, net)(
        clip, 321, texts, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample

    steering = sm.ControlAttachment(control, hints, scale=0.5)
    before = unet(fold(clip), 321, texts).sample
    alone = []
    with sm.attach(
        unet, steering, motion=net, loras={lora: 0.7}, frames=FRAMES, group_norm="pooled"
    ) as stack:
        ours = unfold(unet(fold(clip), 321, texts).sample, FRAMES)
        assert FrameContext.on(unet) is stack.context is steering.context
        for one in stack.attachments:
            one.enabled = False
            alone.append(unfold(unet(fold(clip), 321, texts).sample, FRAMES))
            one.enabled = True
    assert (ours - theirs).abs().max() < 1e-5
    assert all((ours - other).abs().max() > 1e-3 for other in alone), "each of the three does something"
    assert torch.equal(unet(fold(clip), 321, texts).sample, before)
