from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillmotion.training.engine.attention import trainable_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize("queries, keys", [(16, 16), (64, 77), (96, 96)])
def test_the_same_function_with_gradients(queries, keys):
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    parts = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    exact = [part.detach().float().requires_grad_() for part in parts]
    with trainable_attention(CPU):
        said = F.scaled_dot_product_attention(*parts)
    wanted = F.scaled_dot_product_attention(*exact)
    assert said.dtype == torch.bfloat16
    assert torch.allclose(said.float(), wanted, atol=0.02)
    direction = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(said, parts, direction.bfloat16()),
        torch.autograd.grad(wanted, exact, direction),
        strict=True,
    ):
        assert F.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > 0.999


def test_masks_fp32_and_other_devices_stay_with_torch():
    query = torch.randn(1, 2, 8, 4)
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    plain = F.scaled_dot_product_attention(query, query, query)
    masked = F.scaled_dot_product_attention(*[query.bfloat16()] * 3, attn_mask=mask)
    with trainable_attention(CPU):
        assert torch.equal(F.scaled_dot_product_attention(query, query, query), plain)
        assert torch.equal(F.scaled_dot_product_attention(*[query.bfloat16()] * 3, attn_mask=mask), masked)


def test_nothing_is_left_behind():
    half = torch.randn(1, 2, 8, 4).bfloat16()
    before = F.scaled_dot_product_attention(half, half, half)
    with pytest.raises(RuntimeError), trainable_attention(CPU):
        raise RuntimeError
    assert torch.equal(F.scaled_dot_product_attention(half, half, half), before)
