"""What trainers write into the header of a LoRA about its making, in words: kohya's and modelspec's keys."""

from __future__ import annotations

from collections.abc import Mapping

from stillmotion.foreign import parse_json, printable

LABELS = (
    ("title", ("modelspec.title", "ss_output_name")),
    ("author", ("modelspec.author",)),
    ("licence", ("modelspec.license",)),
    ("made for", ("ss_base_model_version", "modelspec.architecture")),
    ("base", ("ss_sd_model_name",)),
    ("resolution", ("modelspec.resolution", "ss_resolution")),
    ("steps", ("ss_steps", "ss_max_train_steps")),
    ("rank told", ("ss_network_dim",)),
    ("alpha", ("ss_network_alpha",)),
    ("made on", ("modelspec.date",)),
)
"""Label -> the keys that tell it, the first that is there."""

LONGEST = 200
MOST_WORDS = 10


def training_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """Label -> what the metadata says, each a short printable line; trigger words among them."""
    details = {}
    words = metadata.get("modelspec.trigger_phrase") or ", ".join(_frequent(metadata))
    rows = [(label, next((metadata[key] for key in keys if metadata.get(key)), "")) for label, keys in LABELS]
    for label, text in [("trigger", words), *rows]:
        line = printable(" ".join(text.split()))[:LONGEST]
        if line and line.lower() not in ("none", "null"):
            details[label] = line
    return details


def _frequent(metadata: Mapping[str, str]) -> list[str]:
    """The tags of kohya's captions that stand at most, those in every folder counted together."""
    try:
        folders = parse_json(metadata.get("ss_tag_frequency") or "{}")
    except ValueError:
        return []  # another program's notes, not needed for the weights
    counts: dict[str, float] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, (int, float)) and tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return sorted(counts, key=lambda tag: -counts[tag])[:MOST_WORDS]
