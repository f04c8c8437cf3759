"""LayerDelta against the definitions of their papers, written out; LoRA layers against the matrix they stand
for.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loras import random_delta
from torch import nn
from torch.nn import functional as F

from stillmotion.errors import Damaged, Mismatch
from stillmotion.lora.deltas import LayerDelta, rescaled
from stillmotion.lora.layers import DenseDelta, LoraLayer, build_layer

LAYERS = {
    "linear": lambda: nn.Linear(8, 12),
    "square": lambda: nn.Linear(8, 8),
    "1x1": lambda: nn.Conv2d(8, 12, 1),
    "3x3": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(8, 12, 3, padding=2, dilation=2),
}
ALGORITHMS = ("lora", "loha", "lokr", "full")


def image(layer: nn.Module) -> torch.Tensor:
    return torch.randn(3, 8, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(3, 5, 8)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(LAYERS)),
    algorithm=st.sampled_from(ALGORITHMS),
    magnitude=st.sampled_from([None, "rows", "columns"]),
    alpha=st.sampled_from([None, 0.5, 4.0]),
    lora_alpha=st.sampled_from(["use", "ignore"]),
    seed=st.integers(0, 10),
)
def test_riders_add_what_the_merged_weight_would(name, algorithm, magnitude, alpha, lora_alpha, seed) -> None:
    torch.manual_seed(seed)
    layer, weight = LAYERS[name](), 1.0
    delta = random_delta(layer, algorithm, alpha=alpha, magnitude=magnitude)
    merged = LAYERS[name]()
    merged.load_state_dict(layer.state_dict())
    merged.weight.data = delta.apply(layer.weight, weight, lora_alpha)
    merged.bias.data += 0 if delta.bias is None else delta.bias
    x = image(layer)
    with torch.no_grad():
        ours = layer(x) + weight * build_layer(layer, delta, lora_alpha)(x)
        torch.testing.assert_close(ours, merged(x), rtol=1e-5, atol=1e-5)


def test_tucker_cores() -> None:
    layer = LAYERS["3x3"]()
    delta = random_delta(layer, tucker=True, alpha=1.0)
    t, x = delta.tensors, image(layer)
    wanted = F.conv2d(F.conv2d(F.conv2d(x, t["down"]), t["mid"], padding=1), t["up"]) * 0.5
    torch.testing.assert_close(build_layer(layer, delta)(x), wanted, rtol=1e-5, atol=1e-5)


def test_definitions() -> None:
    a, b, c, d = torch.randn(6, 2), torch.randn(2, 8), torch.randn(6, 2), torch.randn(2, 8)
    loha = LayerDelta("loha", {"w1_a": a, "w1_b": b, "w2_a": c, "w2_b": d}, alpha=1.0)
    torch.testing.assert_close(loha.dense((6, 8)), (a @ b) * (c @ d) / 2)
    torch.testing.assert_close(LayerDelta("lora", {"up": a, "down": b}, 4.0).dense((6, 8)), 2 * a @ b)
    torch.testing.assert_close(LayerDelta("lora", {"up": a, "down": b}, 4.0).dense((6, 8), "ignore"), a @ b)
    w1, w2 = torch.randn(2, 4), torch.randn(3, 2)
    whole = LayerDelta("lokr", {"w1": w1, "w2": w2}, alpha=9.0)
    torch.testing.assert_close(whole.dense((6, 8)), torch.kron(w1, w2))
    assert (whole.rank, loha.rank) == (None, 2)


@pytest.mark.parametrize(("magnitude", "axis"), [("rows", 1), ("columns", 0)])
@pytest.mark.parametrize("name", ["linear", "square"])
def test_dora_sets_the_lengths(magnitude, axis, name) -> None:
    layer = LAYERS[name]()
    delta = random_delta(layer, magnitude=magnitude)
    lengths = delta.apply(layer.weight).norm(dim=axis)
    torch.testing.assert_close(lengths, delta.magnitude.flatten(), rtol=1e-5, atol=1e-5)
    for weight in (0.5, -0.7):
        scaled = rescaled(layer.weight + weight * delta.dense(layer.weight.shape), delta.magnitude)
        torch.testing.assert_close(delta.apply(layer.weight, weight), scaled, rtol=1e-5, atol=1e-5)
    assert torch.equal(delta.apply(layer.weight, 0.0), layer.weight)
    own = layer.weight.norm(dim=axis, keepdim=True)
    torch.testing.assert_close(rescaled(layer.weight * 3, own), layer.weight)


def test_a_full_difference_changes_the_bias_too() -> None:
    for layer in (nn.Linear(8, 12), nn.Conv2d(8, 12, 3, padding=1)):
        delta = LayerDelta("full", {"diff": torch.randn_like(layer.weight), "bias": torch.randn(12)})
        x, layer_delta = image(layer), build_layer(layer, delta)
        before = layer(x)
        layer.weight.data += delta.tensors["diff"]
        layer.bias.data += delta.bias
        torch.testing.assert_close(before + layer_delta(x), layer(x), rtol=1e-5, atol=1e-5)


def test_plain_loras_stay_in_two_factors_and_convolutions_of_one_pixel_take_matrices() -> None:
    layer = LAYERS["1x1"]()
    flat = LayerDelta("lora", {"down": torch.randn(2, 8), "up": torch.randn(12, 2)})
    assert isinstance(build_layer(layer, flat), LoraLayer)
    assert isinstance(build_layer(layer, random_delta(layer, magnitude="rows")), DenseDelta)
    x = image(layer)
    wanted = F.conv2d(x, flat.dense((12, 8, 1, 1)))
    torch.testing.assert_close(build_layer(layer, flat)(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "names", "words"),
    [
        ("glora", ["a1", "a2", "b1"], "it needs a1 and a2 and b1 and b2"),
        ("ia3", ["weight"], "it needs weight and on_input or gain and on_input"),
        ("lora", ["down"], "A lora layer has down; it needs down and up"),
        ("loha", ["w1_a", "w1_b", "w2_a"], "it needs w1_a and w1_b and w2_a and w2_b"),
        ("lokr", ["w1_a"], "it needs w1 or w1_a and w1_b"),
        ("lokr", ["w1", "w2_a"], "no second factor: w2, or w2_a and w2_b"),
        ("full", [], "it needs diff"),
    ],
)
def test_layers_that_lack_a_tensor(algorithm, names, words) -> None:
    with pytest.raises(Damaged, match=words):
        LayerDelta(algorithm, {name: torch.zeros(2, 2) for name in names})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_changes_of_another_size_do_not_fit(algorithm) -> None:
    delta = random_delta(nn.Linear(16, 12), algorithm)
    with pytest.raises(Mismatch, match="does not fit"):
        build_layer(nn.Linear(8, 12), delta)
    with pytest.raises(Mismatch, match="a GroupNorm cannot be adapted"):
        build_layer(nn.GroupNorm(2, 8), delta)
