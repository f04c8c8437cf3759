"""One description of a clip: every wrong value gets its sentence, every right one comes back from JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.errors import RequestError
from stillmotion.request import Request
from stillmotion.request.conditions import condition_class, condition_kinds
from stillmotion.request.messages import OTHER_NAMES
from stillmotion.request.request import FILLED_BY_MODEL, REQUEST_VERSION, SCHEDULERS

MODEL = {
    "frames": 16,
    "width": 128,
    "height": 128,
    "num_inference_steps": 25,
    "guidance_scale": 5.0,
    "scheduler": "ddim",
    "fps": 8.0,
    "noise_alpha": 0.0,
}

sizes = st.integers(1, 512).map(lambda n: 8 * n)
numbers = st.floats(0, 1e6, allow_nan=False)
places = st.dictionaries(
    st.sampled_from(["unet", "text", "down", "up_blocks.1", "0", "15"]), st.floats(-2, 2)
)
weights = st.dictionaries(st.text(min_size=1), st.floats(-2, 2) | places.filter(bool), max_size=3)
requests = st.fixed_dictionaries(
    {"prompt": st.text()},
    optional={
        "negative_prompt": st.text(),
        "frames": st.integers(1, 10**6),
        "width": sizes,
        "height": sizes,
        "num_inference_steps": st.integers(1, 1000),
        "guidance_scale": numbers,
        "scheduler": st.sampled_from(SCHEDULERS),
        "seed": st.integers(0, 2**64 - 1),
        "fps": st.floats(0.1, 240),
        "motion_scale": numbers,
        "noise_alpha": numbers,
        "clip_skip": st.integers(1, 12),
        "motion": st.text(min_size=1),
        "base": st.none() | st.text(min_size=1),
        "loras": weights,
        "motion_loras": weights,
        "lora_alpha": st.sampled_from(["use", "ignore"]),
        "dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
        "group_norm": st.sampled_from(["family", "pooled"]),
        "single_frame_motion": st.sampled_from(["skip", "run"]),
    },
)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"frames": 0}, "frames is 0, but a clip needs at least 1 whole frame: give `frames=16`."),
        ({"frames": "2.5"}, "frames is 2.5, but a clip needs at least 1 whole frame: give `frames=16`."),
        ({"frames": True}, "frames is True, but a clip needs at least 1 whole frame: give `frames=16`."),
        ({"width": 100}, "width is 100, but sizes are multiples of 8: give `width=96`."),
        ({"height": "1"}, "height is 1, but sizes are multiples of 8: give `height=8`."),
        (
            {"num_inference_steps": 0},
            "num_inference_steps is 0, but it takes between 1 and 1000 steps: give `num_inference_steps=25`.",
        ),
        (
            {"guidance_scale": float("nan")},
            "guidance_scale is nan, but it must be a number of at least 0: give `guidance_scale=7.5`.",
        ),
        ({"seed": -1}, "seed is -1, but a seed is a whole number of at least 0: give `seed=7`."),
        ({"prompt": {0: "spring"}}, "prompt is {0: 'spring'}, but it must be text"),
        ({"loras": ["a=0.5", "b=much"]}, "loras is much, but each is a file and its weight (a number, or"),
        ({"loras": {"a": {"head": 0.5}}}, "loras is {'head': 0.5}, but each is a file and its weight"),
        ({"motion_loras": "pan.ckpt=0:x"}, "motion_loras is 0:x, but each is a file and its weight"),
        (
            {"lora_alpha": "comfy"},
            "lora_alpha is comfy, but it must be one of use, ignore: give `lora_alpha=",
        ),
        ({"steps": 20}, "A request has no field steps: did you mean num_inference_steps?"),
        ({"framse": 20}, "A request has no field framse: did you mean frames?"),
        ({"zebra": 20}, "A request has no field zebra: known are prompt, negative_prompt,"),
        (
            {"group_norm": "comfy"},
            "group_norm is comfy, but it must be one of family, pooled: give `group_norm=",
        ),
    ],
)
def test_one_sentence_for_each_mistake(fields, sentence):
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt": "a rocket", **fields})
    assert str(caught.value).startswith(sentence)
    with pytest.raises(RequestError):
        Request.from_json({"prompt": "a rocket", **fields})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"guidance_scale": 1e30}, "guidance_scale is 1e+30, but it may be at most 1000000"),
        ({"guidance_scale": "inf"}, "guidance_scale is inf, but it must be a number"),
        ({"guidance_scale": 10**400}, "guidance_scale is 1000"),
        ({"motion_scale": "1e308"}, "motion_scale is 1e308, but it may be at most 1000000"),
        ({"noise_alpha": 1e160}, "noise_alpha is 1e+160, but it may be at most 1000000"),
        ({"loras": ["a=1e30"]}, "loras is 1e30, but"),
        ({"loras": {"a": 10**5000}}, "loras is a number too long to be shown, but"),
        ({"loras": {"a": {"9" * 5000: 1}}}, "loras is {'999"),
        ({"motion_loras": {"a": {"unet": -1001}}}, "motion_loras is {'unet': -1001}, but"),
        ({"width": 16392}, "width is 16392, but it may be at most 16384"),
        ({"width": "9" * 400}, "width is 999"),
        ({"height": 10**5000}, "height is a number too long to be shown, but"),
        ({"frames": "9" * 30}, "frames is 999999999999999999999999999999, but it may be at most 1000000"),
        ({"frames": 10**400}, "frames is 1000"),
        ({"clip_skip": 101}, "clip_skip is 101, but it may be at most 100"),
        ({"seed": 2**64}, "seed is 18446744073709551616, but it must be below 18446744073709551616"),
        ({"fps": 1e9}, "fps is 1000000000.0, but it may be at most 240"),
        ({"prompt": "caf\udce9"}, "prompt is caf\udce9, but it must be text in UTF-8"),
        ({"negative_prompt": "x" * 100_001}, "negative_prompt is xxx"),
    ],
)
def test_numbers_and_texts_have_upper_bounds(fields, sentence):
    with pytest.raises(RequestError) as caught:
        Request(**{"prompt": "a rocket", **fields})
    assert str(caught.value).startswith(sentence) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"prompt": "x", "frames": 1e999}', "too large"),
        ('{"prompt": "x", "fps": NaN}', "NaN"),
        ('{"prompt": "x", "prompt": "y"}', "'prompt' stands in it twice"),
        ('{"prompt": ' + "[" * 10**5, "nested"),
        ('{"prompt": "' + "x" * 2**20 + '"}', "at most 1,048,576"),
    ],
)
def test_json_of_strangers_is_bounded(text, reason):
    with pytest.raises(RequestError, match=f"not a request in JSON: .*{reason}"):
        Request.from_json(text)


def test_two_mistakes_get_two_sentences():
    with pytest.raises(RequestError, match=r"^frames is 0, .*\. width is 9, .*\.$"):
        Request(prompt="a rocket", frames=0, width=9)


def test_a_request_needs_a_prompt():
    with pytest.raises(RequestError, match="prompt is missing: give"):
        Request()


def test_an_unknown_sampler_is_answered_with_all_and_the_closest():
    with pytest.raises(RequestError) as caught:
        Request(prompt="a rocket", scheduler="dpmpp2m")
    assert all(name in str(caught.value) for name in SCHEDULERS)
    assert str(caught.value).endswith("give `scheduler='dpmpp_2m'`.")


def test_names_are_read_as_people_write_them():
    request = Request(prompt="a rocket", scheduler="Euler A", dtype="torch.float16", group_norm="Pooled")
    assert (request.scheduler, request.dtype, request.group_norm) == ("euler_a", "float16", "pooled")
    assert Request(prompt="a rocket", dtype="bf16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        (["a.safetensors=0.8", "b.safetensors"], {"a.safetensors": 0.8, "b.safetensors": 1.0}),
        (["x=y.safetensors=0.5"], {"x=y.safetensors": 0.5}),
        ("a.safetensors", {"a.safetensors": 1.0}),
        ({"a.safetensors": 0.3}, {"a.safetensors": 0.3}),
        (["a=unet:0.8,text:0.5"], {"a": {"unet": 0.8, "text": 0.5}}),
        (["a=0:0,15:1", "C:\\b.ckpt=0.5"], {"a": {"0": 0.0, "15": 1.0}, "C:\\b.ckpt": 0.5}),
        ({"a": {0: 0, 15: 1}, "b": "0.5"}, {"a": {"0": 0.0, "15": 1.0}, "b": 0.5}),
        ([], {}),
    ],
)
def test_loras_as_the_command_line_and_as_python_give_them(given_, meant):
    assert Request(prompt="a rocket", loras=given_).loras == meant
    assert Request(prompt="a rocket", motion_loras=given_).motion_loras == meant


@given(requests)
def test_json_brings_back_the_same_request(fields):
    request = Request(**fields)
    text = request.to_json()
    assert text.isascii() and "\n" not in text
    assert Request.from_json(text) == request
    assert Request.from_json(json.loads(text)) == request


@given(requests)
def test_a_filled_request_keeps_what_was_given_and_leaves_nothing_open(fields):
    filled = Request(**fields).filled(MODEL)
    assert all(getattr(filled, name) is not None for name in (*FILLED_BY_MODEL, "seed"))
    for name, value in fields.items():
        assert getattr(filled, name) == value
    for name in MODEL.keys() - fields.keys():
        assert getattr(filled, name) == MODEL[name]
    assert filled.filled({"frames": 99, "fps": 99}) == filled == Request.from_json(filled.to_json())


def test_the_model_may_fill_fields_that_have_a_default_of_their_own():
    defaults = {**MODEL, "negative_prompt": "blurry"}
    assert Request(prompt="x").filled(defaults).negative_prompt == "blurry"
    assert Request(prompt="x", negative_prompt="").filled(defaults).negative_prompt == ""
    kept = Request.from_json(Request(prompt="x").to_json())
    assert kept.filled(defaults).negative_prompt == "blurry", "JSON must not make defaults look given"


def test_what_no_one_says_is_asked_for_and_typos_in_defaults_are_not_swallowed():
    with pytest.raises(RequestError, match=r"no default for width and fps: give `width=` and `fps=`\."):
        Request(prompt="x").filled({name: MODEL[name] for name in MODEL.keys() - {"width", "fps"}})
    with pytest.raises(RequestError, match="no field widht: did you mean width"):
        Request(prompt="x").filled({**MODEL, "widht": 64})


def test_seeds_are_drawn_anew():
    assert len({Request(prompt="x").filled(MODEL).seed for _ in range(5)}) > 1


def test_a_newer_request_loses_only_what_is_unknown_and_says_so():
    newer = {"version": REQUEST_VERSION + 1, "prompt": "x", "frames": 8, "camera": "pan left"}
    with pytest.warns(UserWarning, match="newer stillmotion; left out, because unknown here: camera"):
        assert Request.from_json(newer) == Request(prompt="x", frames=8)
    with pytest.raises(RequestError, match="no field camera"):
        Request.from_json({**newer, "version": REQUEST_VERSION})
    for broken in ("{", "[1]", "3"):
        with pytest.raises(RequestError, match="not a request in JSON"):
            Request.from_json(broken)


def test_the_version_grows_with_the_fields():
    """If this fails because you added a field: add it here, and 1 to REQUEST_VERSION."""
    fields = """prompt negative_prompt clip_skip frames width height fps num_inference_steps guidance_scale
        scheduler seed motion_scale noise_alpha lora_alpha group_norm single_frame_motion motion base vae
        embeddings loras motion_loras dtype conditions"""
    assert (REQUEST_VERSION, list(Request.model_fields)) == (9, fields.split())


def test_requests_do_not_change_but_can_be_replaced():
    request = Request(prompt="x", frames=8)
    with pytest.raises(ValueError, match="frozen"):
        request.frames = 9
    assert request.replace(frames=9, seed=1) == Request(prompt="x", frames=9, seed=1)
    with pytest.raises(RequestError, match="frames is 0"):
        request.replace(frames=0)


def test_every_field_is_a_flag_that_accepts_its_own_example_and_choices():
    flags = Request.flags()
    names = [name for flag in flags for name in flag.names]
    fields = [name for name in Request.model_fields if name != "conditions"]  # each kind has its own flag
    assert [flag.field for flag in flags] == [*fields, *condition_kinds()]
    assert len(set(names)) == len(names) and all(name.startswith("--") for name in names)
    assert [flag.field for flag in flags if not flag.names] == ["prompt"]
    repeated = ["embeddings", "loras", "motion_loras", *condition_kinds()]
    assert [flag.field for flag in flags if flag.repeated] == repeated
    kinds = {flag.field: flag.type for flag in flags}
    assert (kinds["frames"], kinds["fps"], kinds["loras"], kinds["group_norm"]) == (int, float, str, str)
    for flag in flags:
        assert flag.help
        if flag.field in condition_kinds():
            example = condition_class(flag.field).example
        else:
            example = Request.model_fields[flag.field].json_schema_extra["example"]
        for text in (example, *flag.choices):
            request = Request.parse(**{"prompt": "x", flag.field: text})
            assert flag.repeated or isinstance(getattr(request, flag.field), flag.type)
            assert flag.field not in condition_kinds() or len(request.conditions) == 1


def test_hints_point_to_real_fields():
    assert set(OTHER_NAMES.values()) <= set(Request.model_fields)
    assert not set(OTHER_NAMES) & set(Request.model_fields)


def test_importing_requests_brings_nothing_heavy():
    heavy = (
        "import sys, stillmotion.request.request; print(set(sys.modules) & {'torch', 'numpy', 'PIL', 'av'})"
    )
    result = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
