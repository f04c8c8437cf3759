"""A request in sections: each field in one of them, given and read flat or by section; models are a key."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import pydoc
from typing import get_type_hints

import pytest
from tiny import tiny_motion, tiny_pipeline

import stillmotion
from stillmotion.errors import RequestError
from stillmotion.request import Request
from stillmotion.request.request import SECTIONS
from stillmotion.request.sections import Models, Sampling
from stillmotion.request.typed import RequestFields
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.calls import CallFields

FLAT = {
    "prompt": "a rocket",
    "frames": 8,
    "seed": 3,
    "base": "sd.ckpt",
    "loras": {"a": 0.5, "b": {"unet": 1}},
}
BY_SECTION = {
    "prompts": {"prompt": "a rocket"},
    "output": {"frames": 8},
    "sampling": Sampling(seed=3),
    "models": {"base": "sd.ckpt", "loras": ["a=0.5", "b=unet:1"]},
}


def test_each_field_stands_in_one_section() -> None:
    fields = [name for section in SECTIONS.values() for name in section.model_fields]
    assert [*fields, "conditions"] == list(Request.model_fields) and len(set(fields)) == len(fields)
    assert not SECTIONS.keys() & set(fields)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_reads_like_the_flat_fields(name) -> None:
    request = Request.parse(**FLAT)
    section = getattr(request, name)
    assert section.given() and all(getattr(request, key) == value for key, value in section.given().items())
    assert (
        Request.parse(prompt="a rocket", **{name: section}).given()
        == {"prompt": "a rocket"} | section.given()
    )


def test_flat_and_sections_are_forms_of_the_same_request() -> None:
    assert Request.parse(**BY_SECTION) == Request.parse(**FLAT)
    plain = BY_SECTION | {"sampling": {"seed": 3}}
    assert (
        Request.from_json(json.dumps(plain)) == Request.from_json(json.dumps(FLAT)) == Request.parse(**FLAT)
    )
    assert Request(prompt="x", sampling={"motion_strength": 0.5}).motion_scale == 0.5, "old names too"
    assert Request(prompt="x", frames=8).replace(output={"frames": 9}).frames == 9
    assert json.loads(Request.parse(**BY_SECTION).to_json()).keys() == {"version", *FLAT}, "written flat"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sampling": {"frames": 8}}, "The section sampling has no field frames"),
        ({"sampling": {"sead": 8}}, "The section sampling has no field sead: did you mean seed?"),
        ({"sampling": 3}, "sampling is a section of a request"),
        ({"sampling": {"seed": 3}, "seed": 4}, "seed is given twice with different values, once in sampling"),
        (
            {"output": {"frames": 0}},
            "frames is 0, but a clip needs at least 1 whole frame: give `frames=16`.",
        ),
    ],
)
def test_a_section_that_is_wrong_is_a_sentence(fields, sentence) -> None:
    with pytest.raises(RequestError) as error:
        Request(prompt="x", **fields)
    assert str(error.value).startswith(sentence)
    assert Request(prompt="x", sampling={"seed": 3}, seed=3).seed == 3


def test_models_are_a_key() -> None:
    one, other = Request.parse(**FLAT), Request.parse(**FLAT | {"prompt": "a cat", "seed": 9, "frames": 2})
    turned = Request.parse(**FLAT | {"loras": {"b": {"unet": 1}, "a": 0.5}})
    assert one.models == other.models == turned.models
    assert {one.models: 1}[other.models] == {turned.models: 1}[Models(**one.models.given())] == 1
    for change in (
        {"base": "x"},
        {"loras": {"a": 0.4}},
        {"dtype": "fp16"},
        {"embeddings": ["a=b"]},
        {"vae": "v"},
    ):
        assert one.replace(**change).models not in {one.models}
    assert hash(one) == hash(Request.parse(**FLAT))


def test_nothing_inside_a_request_changes() -> None:
    request = Request.parse(**FLAT)
    for change in (
        lambda: request.loras.update(a=2.0),
        lambda: request.loras.__setitem__("a", 2.0),
        lambda: request.loras["b"].pop("unet"),
        lambda: request.models.loras.clear(),
        lambda: Request(prompt="x").loras.setdefault("a", 1.0),
    ):
        with pytest.raises(TypeError, match="does not change"):
            change()
    for same in (copy.deepcopy(request), pickle.loads(pickle.dumps(request)), request.model_copy()):
        assert same == request and hash(same.models) == hash(request.models)


def test_the_typed_fields_are_the_fields() -> None:
    assert ["prompt", *RequestFields.__annotations__] == [*Request.model_fields, "controls"]
    typed = get_type_hints(RequestFields)
    for name, info in Request.model_fields.items():
        if name != "prompt" and type(None) in getattr(info.annotation, "__args__", ()):
            assert type(None) in typed[name].__args__, name
    assert "RequestFields" in str(CallFields.__orig_bases__)
    for call, kind in ((Animator.animate, "Any"), (Animator.request, "RequestFields")):
        assert kind in str(inspect.signature(call).parameters["fields"].annotation)


def test_help_shows_every_field_with_its_help() -> None:
    shown = pydoc.plain(pydoc.render_doc(stillmotion.Request))
    for name, info in Request.model_fields.items():
        assert f"{name}: {info.description}." in " ".join(shown.replace("|", " ").split())
    assert set(Request.model_fields) <= set(inspect.signature(stillmotion.Request).parameters)


@pytest.fixture
def checked(monkeypatch) -> list[str]:
    """The classes of which an object was validated, in order."""
    found = []

    monkeypatch.setattr(
        Request,
        "input_form",
        classmethod(lambda cls, f, b=Request.input_form: found.append("Request") or b(f)),
    )
    return found


def test_a_request_is_validated_once_on_its_way_to_a_clip(checked) -> None:
    animator = Animator(tiny_pipeline(), tiny_motion(), models={"base": "mine"})
    del checked[:]
    clip = animator.animate("a rocket", frames=2)
    assert checked == ["Request"]
    del checked[:]
    animator.animate(clip.request)
    assert checked == []
    animator.animate(Request(prompt="a cat", frames=2))
    assert checked == ["Request"]
    animator.animate(clip.request, seed=1)
    assert checked[1:] == ["Request"] * 2, "replaced: a new request (its fields, and the whole)"
