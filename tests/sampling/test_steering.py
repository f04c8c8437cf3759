"""Conditions while a clip is drawn: on the pipeline, off again, their models kept."""

from __future__ import annotations

import dummy_condition
import numpy as np
import pytest
import torch
from dummy_condition import LOADED, Tint
from tiny import tiny_motion, tiny_pipeline

from stillmotion.errors import RequestError
from stillmotion.request import Request
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.conditions import CONDITIONS
from stillmotion.sampling.conditions.base import Condition, Contribution
from stillmotion.video import Clip

FRAMES = 3


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, *dummy_condition.ROW)
    LOADED.clear()


@pytest.fixture(scope="module")
def tiny() -> Animator:
    return Animator(tiny_pipeline(), tiny_motion())


def drawn(animator: Animator, **fields) -> Clip:
    return animator.animate("a rocket", frames=FRAMES, seed=1, num_inference_steps=2, **fields)


def test_a_condition_acts_and_leaves_nothing(tiny) -> None:
    plain = drawn(tiny)
    tinted = drawn(tiny, controls=[Tint("a", "b", amount=0.5)])
    assert not np.array_equal(tinted.frames, plain.frames)
    assert np.array_equal(drawn(tiny).frames, plain.frames)
    assert np.array_equal(tiny.animate(Request.from_json(tinted.request.to_json())).frames, tinted.frames)
    twice = drawn(tiny, controls=[Tint("a", "b", amount=0.25), Tint("c", "b", amount=0.25)])
    assert np.abs(twice.frames.astype(int) - tinted.frames).max() <= 1, "several add up"


def test_models_of_conditions_are_kept_while_they_are_used(tiny) -> None:
    drawn(tiny)
    LOADED.clear()
    for _ in range(2):
        drawn(tiny, controls=[Tint("a", "b"), Tint("c", "b")])
    assert LOADED == ["a", "c"]
    drawn(tiny, controls=[Tint("c", "other", amount=2)])
    assert LOADED == ["a", "c"] and [key[1] for key in tiny.condition_models] == ["c"]
    drawn(tiny)
    assert not tiny.condition_models


def test_an_exception_takes_conditions_off(tiny) -> None:
    before = drawn(tiny)

    def stop(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.sample(before.request.replace(controls=[Tint("a", "b")]), stop)
    assert np.array_equal(drawn(tiny).frames, before.frames)


def test_two_conditions_may_not_claim_the_same(tiny) -> None:
    drawn(tiny, controls=[Tint("a", "twice")])
    with pytest.raises(RequestError, match="Two conditions set eta; the second is tint"):
        drawn(tiny, controls=[Tint("a", "twice"), Tint("c", "twice")])


class Start(Condition):
    """Starts from zeros."""

    flag, help, example = "--start", "start from zeros", ""

    def prepare(self, run) -> Contribution:
        return Contribution(initial_latents=torch.zeros(run.request.frames, 4, 8, 8))


def test_a_condition_may_start_the_clip(tiny, monkeypatch) -> None:
    monkeypatch.setitem(CONDITIONS, "start", f"{__name__}:Start")
    one, other = drawn(tiny, conditions=[Start()]), drawn(tiny, conditions=[Start()], noise_alpha=3)
    assert np.array_equal(one.frames, other.frames)
    with pytest.raises(RequestError, match="Two conditions set the start of the clip"):
        drawn(tiny, conditions=[Start(), Start()])
