"""Weights: whatever people write means one number for each layer and frame, or gets one sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.errors import RequestError
from stillmotion.request.layer_weights import BLOCKS, PARTS, LayerWeights

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"

numbers = st.floats(-4, 4)
by_layer = st.dictionaries(st.sampled_from([*PARTS, *BLOCKS, "down_blocks.1", "up_blocks.0"]), numbers)
curves = st.dictionaries(st.integers(0, 40), numbers, min_size=1)


@given(numbers)
def test_a_number_acts_everywhere(number) -> None:
    for given_ in (number, repr(number), LayerWeights.of(number)):
        layer_weights = LayerWeights.of(given_)
        assert (
            layer_weights.spec
            == layer_weights.for_layer("unet", ATTENTION)
            == layer_weights.for_layer("text_encoder")
            == number
        )
        assert layer_weights.for_frames(3) is None


@given(by_layer, curves)
def test_text_mappings_and_json_mean_the_same(where, by_frame) -> None:
    spec = {**where, **{str(frame): number for frame, number in by_frame.items()}}
    layer_weights = LayerWeights.of(spec)
    text = ",".join(f"{key}:{number!r}" for key, number in spec.items())
    assert (
        layer_weights == LayerWeights.of(text) == LayerWeights.of(json.loads(json.dumps(layer_weights.spec)))
    )
    assert layer_weights == LayerWeights.of(
        {int(key) if key.isdecimal() else key: n for key, n in spec.items()}
    )


@given(curves, st.integers(1, 50))
def test_curves_pass_through_their_points_in_straight_lines(by_frame, frames) -> None:
    values = LayerWeights.of(by_frame).for_frames(frames)
    known = sorted(by_frame)
    assert len(values) == frames
    for frame, value in enumerate(values):
        if frame in by_frame:
            assert value == by_frame[frame]
        elif frame < known[0] or frame > known[-1]:
            assert value == by_frame[known[0] if frame < known[0] else known[-1]]
        else:
            before, after = max(k for k in known if k < frame), min(k for k in known if k > frame)
            part = (frame - before) / (after - before)
            assert value == pytest.approx((1 - part) * by_frame[before] + part * by_frame[after], abs=1e-9)


@pytest.mark.parametrize(
    ("given_", "part", "path", "weight"),
    [
        ("unet:0.8,text:0.5", "unet", ATTENTION, 0.8),
        ("unet:0.8,text:0.5", "text_encoder_2", "text_model.encoder.layers.0.mlp.fc1", 0.5),
        ("text:0.5,text_encoder_2:0.2", "text_encoder_2", "text_projection", 0.2),
        ("text:0.5", "unet", ATTENTION, 1.0),
        ("down:0.5,mid:0", "unet", ATTENTION, 0.5),
        ("down:0.5,down_blocks.1:0.25", "unet", ATTENTION, 0.25),
        ("down.1:0.25,down:0.5", "unet", ATTENTION, 0.25),
        ("unet:0.3,down:0.5", "unet", ATTENTION, 0.5),
        ("unet:0.3,up:0.5", "unet", ATTENTION, 0.3),
        ("down_blocks.1.attentions.0:2,down_blocks.1:0", "unet", ATTENTION, 2.0),
        ("motion:0.4", "motion", "mid_block.motion_modules.0.temporal_transformer.proj_in", 0.4),
        ("motion:0.4,mid:0.1", "motion", "mid_block.motion_modules.0.temporal_transformer.proj_in", 0.1),
        ("0:0,15:1", "unet", ATTENTION, 1.0),
        ("unet:0.5,0:0,15:1", "unet", ATTENTION, 0.5),
    ],
)
def test_the_most_specific_name_counts(given_, part, path, weight) -> None:
    assert LayerWeights.of(given_).for_layer(part, path) == weight


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ("much", "A weight is 'much'; expected a number, or pairs"),
        ("", "A weight is ''"),
        ("unet:", "A weight is ''"),
        ("unet:0.5,text", "A weight is ''"),
        ("head:0.5", "given for 'head', which is no part .*block .*or frame number"),
        ("-1:0.5", "given for '-1'"),
        ({}, "A weight is empty"),
        (True, "A weight is True"),
        (float("nan"), "A weight is nan"),
        ("inf", "A weight is 'inf'"),
        (None, "A weight is None"),
        ({"unet": [1]}, r"A weight is \[1\]"),
    ],
)
def test_what_is_no_weight_gets_a_sentence(given_, words) -> None:
    with pytest.raises(RequestError, match=words):
        LayerWeights.of(given_)
