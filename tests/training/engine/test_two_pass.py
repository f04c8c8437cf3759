"""Losses of several passes, and what is left of clips without what their frames share."""

from __future__ import annotations

import pytest
import torch

from stillmotion.diffusion.objectives import appearance_debiased
from stillmotion.training.engine.two_pass import backward_now, frozen


def test_a_settled_loss_is_the_loss():
    torch.manual_seed(0)
    layer, unused = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.ones(2))
    loss = layer(torch.randn(4, 3)).square().mean()
    wanted = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    done = backward_now(loss, [*layer.parameters(), unused])
    assert done.detach() == loss.detach()
    found = torch.autograd.grad(2 * done, list(layer.parameters()))
    assert all(torch.equal(a, 2 * b) for a, b in zip(found, wanted, strict=True))
    with pytest.raises(RuntimeError, match="boom"), frozen(layer.parameters()):
        assert not layer.weight.requires_grad
        raise RuntimeError("boom")
    assert layer.weight.requires_grad


def test_debiasing_takes_away_what_frames_share_and_keeps_variance():
    clip = torch.randn(2, 5, 3, 4, 4)
    same = appearance_debiased(clip[:, :1].expand_as(clip), [1, 3])
    assert torch.allclose(same, (2**0.5 - 1) * clip[:, :1].expand_as(clip), atol=1e-6)
    noise = torch.randn(1, 2, 10_000)
    assert appearance_debiased(noise, [0])[0, 1].var().item() == pytest.approx(3.0, rel=0.1)
    assert appearance_debiased(noise, [0], beta=0.0).equal(noise)
