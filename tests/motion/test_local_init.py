"""Fresh motion that begins by looking at near frames."""

from __future__ import annotations

import pytest
import torch

from stillmotion.motion.families import V3, installed_families
from stillmotion.motion.local_init import init_local_attention
from stillmotion.motion.module import MotionModules, TemporalAttention

EMOJI = installed_families()["emoji"]


def weights_by_distance(attention: TemporalAttention, head: int, frames: int = 16) -> torch.Tensor:
    """Mean attention of one head by the distance of two frames, where the images say nothing."""
    x = attention.pos_encoder(torch.zeros(frames, 1, attention.to_q.in_features), frames)
    width = attention.to_q.in_features // attention.heads
    rows = slice(head * width, (head + 1) * width)
    q, k = (projection(x)[:, 0, rows] for projection in (attention.to_q, attention.to_k))
    weights = torch.softmax(q @ k.T * width**-0.5, -1)
    return torch.stack([weights.diagonal(apart).mean() for apart in range(frames)])


@pytest.mark.parametrize("spec", [EMOJI, V3], ids=lambda spec: spec.name)
@torch.no_grad()
def test_half_of_the_heads_look_near_and_the_others_as_before(spec):
    torch.manual_seed(0)
    net = MotionModules(spec)
    attention = net.down_blocks[0]["motion_modules"][0].temporal_transformer.transformer_blocks[0]
    attention = attention.attention_blocks[0]
    before = [weights_by_distance(attention, head) for head in range(attention.heads)]
    init_local_attention(net)
    after = [weights_by_distance(attention, head) for head in range(attention.heads)]
    for head in range(attention.heads // 2):
        assert after[head][0] > after[head][3] > after[head][8]
        assert after[head][0] > 1.5 * before[head][0]
    for head in range(attention.heads // 2, attention.heads):
        assert torch.equal(after[head], before[head])


@torch.no_grad()
def test_fresh_motion_still_adds_nothing():
    net = MotionModules(EMOJI)
    init_local_attention(net)
    module = net.down_blocks[0]["motion_modules"][0]
    hidden = torch.randn(8, 128, 4, 4)
    assert torch.equal(module(hidden, 8), hidden)
