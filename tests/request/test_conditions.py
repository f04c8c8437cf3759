"""Conditions: one file and one row, of which flag, help, text, JSON, metadata and docs come."""

from __future__ import annotations

import json
from pathlib import Path

import dummy_condition
import pytest
from dummy_condition import Tint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillmotion.errors import RequestError
from stillmotion.request import Request
from stillmotion.request.conditions import condition_class, condition_kinds, conditions_table, kind_of
from stillmotion.request.request import REQUEST_VERSION
from stillmotion.sampling.conditions import CONDITIONS


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, *dummy_condition.ROW)


ONE = Tint("a.safetensors", "hints/", amount=0.5)


@pytest.mark.parametrize(
    "given_",
    [
        {"conditions": [ONE]},
        {"controls": (ONE,)},
        {"conditions": ONE},
        {"tint": "a.safetensors:hints/,amount=0.5"},
        {"tint": ["a.safetensors:hints/,amount=0.5"]},
        {"tint": {"file": "a.safetensors", "hints": "hints/", "amount": "0.5"}},
        {"tint": ONE},
        {"conditions": [{"kind": "tint", "file": "a.safetensors", "hints": Path("hints/"), "amount": 0.5}]},
    ],
)
def test_forms_of_input(given_) -> None:
    request = Request(prompt="x", **given_)
    if "Path" not in repr(given_):
        assert request.conditions == (ONE,) == request.controls
    assert request.replace(frames=3).conditions == request.conditions
    assert Request.from_json(request.to_json()) == request == Request.from_json(json.loads(request.to_json()))
    assert hash(request) == hash(Request.from_json(request.to_json()))


def test_json_says_kind_and_what_was_set() -> None:
    request = Request(prompt="x", conditions=[ONE])
    said = json.loads(request.to_json())
    assert said["conditions"] == [{"kind": "tint", "file": "a.safetensors", "hints": "hints/", "amount": 0.5}]
    assert "conditions" not in json.loads(Request(prompt="x", conditions=[]).to_json())


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a:b", {"file": "a", "hints": "b"}),
        ("a:b,amount=0.5,from=0.25", {"file": "a", "hints": "b", "amount": 0.5, "start": 0.25}),
        ("a:b, amount = 0.5", {"file": "a", "hints": "b", "amount": 0.5}),
        ("a:b,start=0.25", {"file": "a", "hints": "b", "start": 0.25}),
        (r"C:\m\a.pth:D:\clips\b.mp4", {"file": r"C:\m\a.pth", "hints": r"D:\clips\b.mp4"}),
        ("owner/model:a 12:30.mp4", {"file": "owner/model", "hints": "a 12:30.mp4"}),
        ("a,b.pth:c, d/", {"file": "a,b.pth", "hints": "c, d/"}),
        ("a,hints=b", {"file": "a", "hints": "b"}),
    ],
)
def test_text(text, fields) -> None:
    assert Tint.from_text(text) == Tint(**fields)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a", "hints of --tint is missing: give hints/."),
        ("", "file of --tint is missing"),
        (":b", "file of --tint is missing"),
        ("a:b,amuont=3", "--tint has no setting amuont: did you mean amount?"),
        ("a:b,zebra=3", "--tint has no setting zebra: known are file, hints, amount, from."),
        ("a:b,amount=9", "amount of --tint is 9, but it may be at most 2: give amount=0.5."),
        ("a:b,amount=much", "amount of --tint is much, but it must be between -2 and 2: give amount=0.5."),
        ("a:b,amount=nan", "amount of --tint is nan, but"),
        ("a:b,from=7", "start of --tint is 7, but it may be at most 1: give from=0.2."),
        ("a:b,amount=1,amount=1", "amount is given twice in --tint"),
        ("a:b,hints=c", "hints is given twice in --tint"),
    ],
)
def test_wrong_text_is_a_sentence(text, sentence) -> None:
    with pytest.raises(RequestError) as error:
        Request(prompt="x", tint=text)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"conditions": "a:b"}, "A condition is a:b, but should be one such as"),
        ({"conditions": [3]}, "A condition is 3, but"),
        ({"conditions": [{"file": "a"}]}, "A condition has the kind None; known are"),
        ({"conditions": [{"kind": "zebra"}]}, "There is no condition of the kind zebra; known are"),
        ({"conditions": [{"kind": ["tint"]}]}, "A condition has the kind ['tint']"),
        ({"conditions": [{"kind": "tint", 3: 4}]}, "A condition is {"),
        ({"tint": {"kind": "other", "file": "a", "hints": "b"}}, "A condition has the kind other"),
        ({"tint": {"file": "a", "hints": "b", "zebra": 1}}, "--tint has no field zebra: known are file"),
        ({"tint": {"file": 3, "hints": "b"}}, "file of --tint is 3, but it must be a path"),
    ],
)
def test_what_is_no_condition_is_a_sentence(fields, sentence) -> None:
    with pytest.raises(RequestError) as error:
        Request(prompt="x", **fields)
    assert str(error.value).startswith(sentence)


def test_python_arguments() -> None:
    assert Tint("a", hints="b") == Tint(file="a", hints="b") == Tint("a", "b")
    for wrong, words in ((("a", "b", 1), "takes file, hints"), (("a",), "hints of --tint is missing")):
        with pytest.raises(RequestError, match=words):
            Tint(*wrong)
    with pytest.raises(RequestError, match="file of Tint is given twice"):
        Tint("a", "b", file="c")
    assert "amount: how much." in Tint.__doc__


def test_replacing_conditions() -> None:
    request = Request(prompt="x", tint=["a:b", "c:d"])
    assert len(request.conditions) == 2
    assert request.replace(tint="e:f").conditions == (Tint("e", "f"),)
    assert request.replace(tint="none").conditions == () == request.replace(conditions=[]).conditions
    assert request.replace(tint=("none",)).conditions == ()


def test_requests_of_a_newer_version_lose_unknown_kinds_with_a_word() -> None:
    each = [{"kind": "tint", "file": "a", "hints": "b"}, {"kind": "camera-path", "file": "c"}]
    newer = {"version": REQUEST_VERSION + 1, "prompt": "x", "conditions": each}
    with pytest.warns(UserWarning, match="unknown here: the condition camera-path"):
        assert Request.from_json(newer).conditions == (Tint("a", "b"),)
    with pytest.raises(RequestError, match="no condition of the kind camera-path"):
        Request.from_json(newer | {"version": REQUEST_VERSION})


def test_weights_of_conditions_travel_in_the_key() -> None:
    plain, steered = Request(prompt="x"), Request(prompt="x", tint="a:b")
    assert steered.models != plain.models and steered.models.condition_models == ("a",)
    assert steered.models == Request(prompt="y", tint="a:other,amount=0.2").models
    assert Request(prompt="x", models=steered.models).models == plain.models
    assert steered.models.load_arguments == plain.models.load_arguments


def test_every_kind_is_complete() -> None:
    flags = [flag for flag in Request.flags() if flag.field in condition_kinds()]
    assert [flag.field for flag in flags] == list(condition_kinds())
    names = [name for flag in Request.flags() for name in flag.names]
    assert len(names) == len(set(names))
    for kind in condition_kinds():
        cls = condition_class(kind)
        assert kind_of(cls.from_text(cls.example)) == kind and kind not in Request.model_fields
        assert cls.help in cls.flag_help() and cls.form() in cls.flag_help()
        assert all(f"`{name}`" in conditions_table() for name in cls.model_fields)


def test_the_table_in_the_docs(monkeypatch) -> None:
    monkeypatch.delitem(CONDITIONS, "tint")
    docs = Path(__file__).parents[2] / "docs" / "reference.md"
    assert conditions_table() in docs.read_text("utf-8"), "copy what conditions_table() gives"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.sampled_from(["a:b,amount=", "a:b,,", ",=,", "::", "C:\\a:b,from=1"]))
def test_any_text_is_a_condition_or_a_sentence(text) -> None:
    try:
        Request(prompt="x", tint=text)
    except RequestError as error:
        assert len(str(error)) < 600
