"""What a small model knows: the list, the search, and the hint for prompts that it will not understand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillmotion.errors import Damaged, UnknownFile
from stillmotion.request.concepts import Concept, Concepts, words_of
from stillmotion.request.installed_models import bundled_folder
from stillmotion.request.model_card import ModelCard

KNOWN = Concepts(
    [
        Concept("rocket", ("space", "launch"), "travel", True),
        Concept("red apple", ("fruit",), "food"),
        Concept("tomato", ("fruit", "vegetable", "red"), "food"),
        Concept("cat face", ("pet",), "animals", True),
        Concept("glasses", (), "objects"),
    ],
    ["3d render", "flat color"],
)


@pytest.mark.parametrize(
    "prompt",
    [
        "a rocket, 3d render style",
        "two ROCKETS",
        "something in space",
        "apples!",
        "a pair of glasses",
        "3d render",
        "",
    ],
)
def test_prompts_with_a_known_word_need_no_hint(prompt: str) -> None:
    assert KNOWN.hint(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("a rockett in 3d render style", "rocket"),
        ("tomatto", "tomato"),
        ("a quantum computer", "`stillmotion"),
    ],
)
def test_unknown_words_get_a_hint_that_names_what_is_near(prompt: str, near: str) -> None:
    hint = KNOWN.hint(prompt)
    assert repr(prompt) in hint
    assert near in hint


@given(st.text())
def test_any_text_can_be_asked(text: str) -> None:
    KNOWN.hint(text)
    assert all(concept in KNOWN.all for concept in KNOWN.search(text))


def test_search_ranks_names_before_keywords_before_groups() -> None:
    assert [concept.name for concept in KNOWN.search("red")] == ["red apple", "tomato"]
    assert [concept.name for concept in KNOWN.search("fruit")] == ["red apple", "tomato"]
    assert [concept.name for concept in KNOWN.search("rocket")] == ["rocket"]
    assert [concept.name for concept in KNOWN.search("food", 1)] == ["red apple"]
    assert KNOWN.search("quantum") == []


def test_similar_words_are_found_only_where_no_word_is_known() -> None:
    known = Concepts([Concept("rocket"), Concept("tennis", ("racket",)), Concept("guitar", ("rock",))])
    assert [concept.name for concept in known.search("rocket")] == ["rocket"]
    assert [concept.name for concept in known.search("rockat")][0] == "rocket"
    assert "tennis" in [concept.name for concept in known.search("rackett")]


def test_words_are_singular_and_lower_case() -> None:
    assert words_of("Red Apples, 3D cherries & a bus-glass") == [
        "red",
        "apple",
        "3d",
        "cherry",
        "a",
        "bus",
        "glass",
    ]


def test_a_model_folder_tells_defaults_schedule_and_concepts(tmp_path) -> None:
    concepts = {"styles": ["flat"], "concepts": [{"name": "rocket", "animated": True, "keywords": ["space"]}]}
    (tmp_path / "things.json").write_text(json.dumps(concepts))
    card = {
        "name": "mine",
        "family": "emoji",
        "defaults": {"width": 64},
        "schedule": {"beta_end": 0.02},
        "concepts": "things.json",
    }
    (tmp_path / "stillmotion.json").write_text(json.dumps(card))
    read = ModelCard.read(tmp_path)
    assert (read.name, read.defaults, read.schedule.said()) == ("mine", {"width": 64}, {"beta_end": 0.02})
    assert [concept.name for concept in read.concepts] == ["rocket"]
    assert ModelCard.read(tmp_path / "nowhere") == ModelCard()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"defaults": 3}',
        '{"schedule": {"beta_middle": 1}}',
        '{"concepts": "missing.json"}',
        '{"concepts": "../missing.json"}',
        '{"concepts": "/etc/hostname"}',
        '{"concepts": 3}',
        '{"name": {}}',
        '{"defaults": {"frames": 1e30}}',
        '{"defaults": {"widht": 64}}',
        '{"schedule": {"beta_end": "x"}}',
        '{"name": "a", "name": "b"}',
        "[" * 10**5,
    ],
)
def test_broken_cards_are_named(tmp_path, text: str) -> None:
    (tmp_path / "stillmotion.json").write_text(text)
    with pytest.raises(Damaged, match=r"stillmotion\.json|missing\.json"):
        ModelCard.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"concepts": [{"name": 3}]}',
        '{"concepts": [{"name": "x", "keywords": "abc"}]}',
        '{"concepts": [{"name": "x", "group": []}]}',
        '{"concepts": [], "styles": "flat"}',
        '{"concepts": {"a": 1}}',
        "[1e999]",
    ],
)
def test_broken_lists_of_concepts_are_named(tmp_path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(Damaged, match=r"c\.json is not a list of concepts"):
        Concepts.read(tmp_path / "c.json")


def test_a_bundled_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownFile, match="'nothing'.*`base=`"):
        bundled_folder("nothing")
