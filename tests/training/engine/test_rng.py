from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.training.engine.rng import SampleRng, sample_rngs, seed_model


def numbers(step, parts, size):
    return [rng.number for part in range(parts) for rng in sample_rngs(7, step, part, size, parts)]


@given(st.integers(0, 1000), st.sampled_from([(1, 12), (2, 6), (4, 3), (12, 1)]))
def test_a_global_batch_is_the_same_however_it_is_divided(step, division):
    parts, size = division
    assert numbers(step, parts, size) == list(range(12 * step, 12 * step + 12))


@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 20))
def test_an_epoch_takes_every_item_once(seed, items, epoch):
    taken = [SampleRng(seed, epoch * items + place).item(items) for place in range(items)]
    assert sorted(taken) == list(range(items))


def test_epochs_seeds_and_samples_differ():
    def order(seed, epoch):
        return [SampleRng(seed, epoch * 50 + place).item(50) for place in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    first, second = SampleRng(0, 1), SampleRng(0, 2)
    assert first.uniform("start") != second.uniform("start") != first.uniform("timestep")
    assert not torch.equal(first.noise(4, 5), second.noise(4, 5))
    assert not torch.equal(first.noise(4), first.noise(4, name="offset"))


def test_a_draw_depends_on_nothing_else():
    rng = SampleRng(3, 17)
    before = rng.noise(2, 3), rng.uniform("start")
    torch.manual_seed(99)
    torch.randn(10)
    rng.uniform("something new"), rng.noise(5, name="something new")
    assert torch.equal(rng.noise(2, 3), before[0]) and rng.uniform("start") == before[1]
    assert torch.equal(SampleRng(3, 17).noise(2, 3), before[0])


def test_an_index_is_below_its_count_and_reaches_all():
    for count in (1, 3, 7):
        assert {SampleRng(0, number).index("caption", count) for number in range(200)} == set(range(count))


def test_choices_and_noise_have_the_right_distribution():
    names = ("start", "caption", "text_dropout", "timestep")
    choices = torch.tensor(
        [[SampleRng(0, number).uniform(name) for name in names] for number in range(4000)],
        dtype=torch.float64,
    )
    assert torch.allclose(choices.mean(0), torch.full((4,), 0.5, dtype=choices.dtype), atol=0.03)
    assert choices.min() >= 0 and choices.max() < 1
    assert torch.corrcoef(choices.T).fill_diagonal_(0).abs().max() < 0.06
    noise = torch.stack([SampleRng(0, number).noise(16) for number in range(1000)])
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


def test_model_seed_is_of_the_place():
    seed_model(1, 5, 0)
    first = torch.rand(3)
    seed_model(1, 5, 1)
    assert not torch.equal(torch.rand(3), first)
    seed_model(1, 5, 0)
    assert torch.equal(torch.rand(3), first)
