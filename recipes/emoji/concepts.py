"""Step 2: which concepts there are, what they are called, and how a caption is said.

A concept is one base emoji: its CLDR name, keywords (emojibase and emojilib) and group, without flags, skin
tones, signs and copies that differ by gender only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np
from fetch import folder
from places import ROOT

STYLES = {"fluent-3d": "3d render", "fluent-flat": "flat", "noto": "noto"}
"""style of the art -> its word in captions; only these train the UNet"""
KEPT_OUT = ("high-contrast", "noto-v1")
"""styles that only the VAE sees: they are there to be learnt by a LoRA later"""
BACKGROUNDS = {
    "blue": (66, 135, 245),
    "red": (220, 60, 60),
    "green": (80, 175, 90),
    "yellow": (250, 215, 90),
    "pink": (250, 170, 200),
    "purple": (140, 95, 200),
    "orange": (250, 160, 70),
    "black": (16, 16, 18),
}
GROUPS = {
    0: "smileys",
    1: "people",
    3: "animals",
    4: "food",
    5: "travel",
    6: "activities",
    7: "objects",
    8: "symbols",
}
_NOT_DRAWN = re.compile(
    r"o’clock|-thirty|facing right|skin tone|^regional|keycap|^family|"
    r"couple with heart: |kiss: |holding hands: "
)
_COLOURED = re.compile(r"^(red|orange|yellow|green|blue|purple|brown|black|white) (circle|square)$")


@dataclass(frozen=True)
class Concept:
    """One thing that can be asked for."""

    code: str
    """code points in lower case, joined by "-", without fe0f"""
    name: str
    group: str
    keywords: tuple[str, ...]
    animated: bool = False


def _code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def animations() -> dict[str, tuple[str, float, bool, bool]]:
    """Code -> (name, mean motion, moves enough, differs by gender only), as surveyed in animations.tsv."""
    rows = (ROOT / "recipes/emoji/animations.tsv").read_text(encoding="utf-8").splitlines()
    cells = (row.split("\t") for row in rows if row)
    return {c[0]: (c[1], float(c[2]), c[3] == "1", c[4] == "1") for c in cells}


def concepts() -> list[Concept]:
    """All concepts, in the order of Unicode."""
    data = json.loads((folder("emojibase-data") / "en/data.json").read_text(encoding="utf-8"))
    more = json.loads((folder("emojilib") / "dist/emoji-en-US.json").read_text(encoding="utf-8"))
    moving = animations()
    found = []
    for row in sorted(data, key=lambda row: row.get("order", 0)):
        name, group = row["label"], GROUPS.get(row.get("group"))
        sign = group == "symbols" and not _COLOURED.match(name)
        if group is None or sign or _NOT_DRAWN.search(name) or _is_gender_copy(name):
            continue
        words = [
            word.replace("_", " ").lower() for word in [*row.get("tags", []), *more.get(row["emoji"], [])]
        ]
        keywords = tuple(dict.fromkeys(word for word in words if word.isascii() and word != name))[:12]
        code = _code(row["hexcode"])
        found.append(Concept(code, name.replace("’", "'"), group, keywords, code in moving))
    return found


def _is_gender_copy(name: str) -> bool:
    """A "man ..." or "woman ..." beside the same image of a person; the plain man and woman stay."""
    return bool(re.match(r"^(man|woman|men|women) (?!and |dancing)\w|^(man|woman):", name))


def held_out(code: str, style: str) -> bool:
    """A tenth of the (concept, style) pairs, by hash: never a whole concept in all styles by design of the
    hash.
    """
    return hashlib.sha256(f"{code}/{style}".encode()).digest()[0] < 26


def caption(concept: Concept, style: str, background: str | None, rng: np.random.Generator) -> str:
    """One way to ask for this image; the plain form "NAME, STYLE style" is the commonest."""
    subject = concept.name
    if concept.keywords and rng.random() < 0.25:
        subject = f"{subject}, {rng.choice(concept.keywords)}"
    elif rng.random() < 0.4:
        subject = ("an " if subject[0] in "aeiou" else "a ") + subject
    if background is not None:
        subject += f" on a {background} background"
    elif rng.random() < 0.1:
        subject += " on a white background"
    return f"{subject}, {STYLES[style]} style"
