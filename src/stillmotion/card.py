"""What a model folder says of itself in its `stillmotion.json`, and where the bundled models are.

Knows no tensors, so that questions about a model are answered without loading it.

    {"name": "emoji", "family": "emoji", "concepts": "concepts.json",
     "defaults": {"width": 128, "frames": 16, "scheduler": "ddim", ...},      fields of a Request
     "schedule": {"beta_schedule": "scaled_linear", ...}}                   columns of the motion's family row
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from stillmotion.concepts import Concepts
from stillmotion.errors import Damaged, UnknownFile

CARD = "stillmotion.json"
BUNDLED = "emoji"
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "timestep_spacing", "noise_alpha")


@dataclass(frozen=True)
class ModelCard:
    """Name, family, defaults of requests, noise schedule, concepts; empty where the folder says nothing."""

    name: str = ""
    family: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    concepts: Concepts | None = None

    @classmethod
    def read(cls, folder: str | Path) -> ModelCard:
        """The card of a model folder; an empty one for single files, hub names and folders without a card."""
        path = Path(folder) / CARD
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            defaults, schedule = dict(content.get("defaults", {})), dict(content.get("schedule", {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} is not a model card in JSON ({error}); correct or remove it.") from error
        unknown = sorted(set(schedule) - set(SCHEDULE))
        if unknown:
            raise Damaged(
                f"{path}: schedule has {', '.join(unknown)}, but may only have {', '.join(SCHEDULE)}."
            )
        concepts = content.get("concepts")
        return cls(
            name=str(content.get("name", "")),
            family=content.get("family"),
            defaults=defaults,
            schedule=schedule,
            concepts=Concepts.read(path.parent / concepts) if concepts else None,
        )


def bundled_folder(name: str = BUNDLED) -> Path:
    """Folder of a model that came with the package; UnknownFile when this installation does not have it."""
    folder = Path(str(files("stillmotion"))) / "bundled" / name
    if not (folder / CARD).is_file():
        raise UnknownFile(
            f"This installation of stillmotion has no bundled model {name!r}; reinstall the package, or name "
            "models of yours with base= and motion= (--base, --motion)."
        )
    return folder
