from __future__ import annotations

import torch
from torch import nn

from stillmotion.training.engine.flat_params import FlatParameters


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_master_keeps_what_the_working_precision_rounds():
    model = net()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    flat = FlatParameters(dict(model.named_parameters()), torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(flat.named().values(), before, strict=True))
    for _ in range(100):
        flat.weights += 1e-5  # far below the steps of bf16
    flat.copy_to_model()
    assert torch.allclose(model[0].weight.float(), before[0] + 1e-3, atol=2e-3)
    assert torch.allclose(flat.named()["0.weight"], before[0] + 1e-3, atol=1e-6)


def test_gradients_of_passes_add_up_to_that_of_the_whole_batch():
    x = torch.randn(8, 3)
    model = net()
    flat = FlatParameters(dict(model.named_parameters()))
    for part in x.split(2):
        model(part).square().mean().backward()
        flat.accumulate_grads(1 / 4)
    whole = net()
    whole(x).square().mean().backward()
    for part, parameter in zip(flat.named(flat.grad).values(), whole.parameters(), strict=True):
        assert torch.allclose(part, parameter.grad, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_publish_others_and_back():
    model = net()
    flat = FlatParameters(dict(model.named_parameters()))
    flat.copy_to_model(torch.zeros_like(flat.weights))
    assert not any(parameter.any() for parameter in model.parameters())
    flat.copy_to_model()
    assert torch.equal(model[1].bias, flat.named()["1.bias"])
