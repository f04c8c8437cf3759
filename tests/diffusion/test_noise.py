"""Noise that goes on from frame to frame: each frame stays standard normal, neighbours correlate as said."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.diffusion.noise import progressive_noise


def drawn(frames: int, size: int = 40_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.5, 1.5, 4.0])
def test_frames_stay_standard_normal_and_correlate_by_their_distance(alpha):
    noise = progressive_noise(drawn(6), alpha)
    assert torch.allclose(noise.mean(1), torch.zeros(6), atol=0.03)
    rho = alpha / (1 + alpha**2) ** 0.5
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    assert torch.allclose(torch.cov(noise), rho ** distance.float(), atol=0.03)


def test_nothing_goes_on_without_alpha_and_in_a_still():
    noise, still = drawn(4), drawn(1)
    assert progressive_noise(noise, 0.0) is noise
    assert torch.equal(progressive_noise(still, 2.0), still)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 10))
def test_a_longer_clip_begins_as_the_shorter_one(short, more, alpha):
    noise = drawn(short + more, 3)
    assert torch.equal(progressive_noise(noise[:short], alpha), progressive_noise(noise, alpha)[:short])
