"""What a small model can draw: a list of concepts to browse, to search, and to compare prompts with.

A large model has no such list, and any prompt is fine; the bundled one learned some hundred
things, and a prompt about anything else gives fog, so its user deserves a hint.

    {"styles": ["3d render", ...],
     "concepts": [{"name": "rocket", "keywords": ["space"], "group": "travel", "animated": true}, ...]}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stillmotion.errors import Damaged
from stillmotion.foreign import read_json

FILLERS = frozenset(
    ["a", "an", "and", "at", "background", "by", "for", "from", "front", "in", "is", "it", "of", "off", "on"]
    + ["or", "over", "style", "the", "to", "under", "up", "with"]
)


CONCEPTS_BYTES = 8 * 2**20
MOST_ASKED = 8
"""Unknown words of a prompt that near ones are looked for; each costs milliseconds."""


@dataclass(frozen=True)
class Concept:
    name: str
    keywords: tuple[str, ...] = ()
    group: str = ""
    animated: bool = False

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(words_of(" ".join([self.name, *self.keywords])))


def words_of(text: str) -> list[str]:
    """Lower-case words without plural endings, in order: "Red Apples, 3D" -> ["red", "apple", "3d"]."""
    return [_singular(word) for word in re.findall(r"[^\W_]+", text.lower())]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


class Concepts:
    """The concepts and styles of one model; `len()` and iteration go over the concepts."""

    def __init__(self, concepts: Iterable[Concept], styles: Iterable[str] = ()) -> None:
        self.all = tuple(concepts)
        self.styles = tuple(styles)

    @classmethod
    def read(cls, path: Path) -> Concepts:
        """Reads a concepts.json; Damaged when it is not one."""
        try:
            content = read_json(path, CONCEPTS_BYTES)
            concepts = [
                Concept(
                    name=_text(entry["name"]),
                    keywords=_texts(entry.get("keywords", [])),
                    group=_text(entry.get("group", "")),
                    animated=bool(entry.get("animated", False)),
                )
                for entry in content["concepts"]
            ]
            return cls(concepts, _texts(content.get("styles", [])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(
                f"{path} is not a list of concepts ({error}); reinstall or retrain the model."
            ) from error

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Concept]:
        return iter(self.all)

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        styles = {word for style in self.styles for word in words_of(style)}
        return frozenset(word for concept in self.all for word in concept.words) - styles - FILLERS

    def search(self, text: str, limit: int | None = None) -> list[Concept]:
        """Concepts for a word or two, best first: in the name, keywords, group; else similar words."""
        wanted = words_of(text)
        scored = [(_score(concept, wanted), concept) for concept in self.all]
        if not any(score for score, _ in scored):
            scored = [(_likeness(concept, wanted), concept) for concept in self.all]
        found = sorted((pair for pair in scored if pair[0] > 0), key=lambda pair: (-pair[0], pair[1].name))
        return [concept for _, concept in found[:limit]]

    def hint(self, prompt: str) -> str | None:
        """A sentence when no word of the prompt is known to the model, naming what comes near; else None."""
        styles = {word for style in self.styles for word in words_of(style)}
        asked = [word for word in words_of(prompt) if word not in FILLERS and word not in styles]
        if not asked or self._vocabulary.intersection(asked):
            return None
        some = list(dict.fromkeys(asked))[:MOST_ASKED]
        near = list(dict.fromkeys(concept.name for word in some for concept in self.search(word, 3)))[:6]
        advice = f"near to it: {', '.join(near)}; all: " if near else "what it knows: "
        shown = prompt if len(prompt) <= 200 else f"{prompt[:200]}..."
        return f"This small model has learned no word of {shown!r}; {advice}`stillmotion concepts`."

    def style_hint(self, prompt: str) -> str | None:
        """A sentence when the prompt asks for a style that the model does not have; else None."""
        known = {word for style in self.styles for word in words_of(style)}
        for named in re.findall(r"([^,.;:]{1,60})\bstyles?\b", prompt.lower()) if known else ():
            asked = [word for word in words_of(named) if word not in FILLERS and word not in self._vocabulary]
            if unknown := [word for word in asked if word not in known]:
                return (
                    f"This small model has no style {' '.join(unknown)!r}; it has {', '.join(self.styles)}."
                )
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} stands where text is expected")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{str(values)[:40]!r} stands where a list of texts is expected")
    return tuple(map(_text, values))


def _score(concept: Concept, wanted: list[str]) -> float:
    name, group = words_of(concept.name), words_of(concept.group)
    score = 0.0
    for word in wanted:
        if word in name:
            score += 4 + 1 / len(name)
        elif word in concept.words:
            score += 2
        elif word in group or (len(word) > 2 and any(known.startswith(word) for known in concept.words)):
            score += 1
    return score


def _likeness(concept: Concept, wanted: list[str]) -> float:
    """How near the most similar word comes, names before keywords; below 0.75 it is 0."""
    name = words_of(concept.name)
    ratios = [
        difflib.SequenceMatcher(None, word, known).ratio() + (0.05 if known in name else 0.0)
        for word in wanted
        for known in concept.words
        if abs(len(word) - len(known)) <= 3
    ]
    best = max(ratios, default=0.0)
    return best if best >= 0.75 else 0.0
