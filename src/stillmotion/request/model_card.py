"""What a model folder says of itself in its `stillmotion.json`.

{"name": "emoji", "family": "emoji", "concepts": "concepts.json",
 "defaults": {"width": 128, "frames": 16, "scheduler": "ddim", ...},      fields of a Request
 "schedule": {"beta_schedule": "scaled_linear", ...},                   fields of a NoiseSchedule
 "motion": {"channels": [128, 256, 256], "layers": [1, 1, 1], ...}}     fields of a MotionConfig
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillmotion.diffusion.schedule import CARD_FIELDS, NoiseSchedule
from stillmotion.errors import Damaged, RequestError
from stillmotion.foreign import read_json
from stillmotion.request import Request
from stillmotion.request.aliases import REQUEST
from stillmotion.request.concepts import Concepts

CARD = "stillmotion.json"
CARD_BYTES = 2**20
MOTION_FIELDS: dict[str, type] = {
    "channels": list,
    "layers": list,
    "heads": list,
    "mid": bool,
    "positions": int,
    "norm_groups": int,
    "motion_norm": str,
    "resnet_norm": str,
}
"""What a card may say of the shape of its motion, and how."""


@dataclass(frozen=True)
class ModelCard:
    """Name, family, defaults of requests, noise schedule, concepts; empty where the folder says nothing.

    `motion` is the shape of the motion modules of a family that the model brings.
    """

    name: str = ""
    family: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    schedule: NoiseSchedule = NoiseSchedule()
    concepts: Concepts | None = None
    motion: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> ModelCard:
        """The card of a model folder; an empty one for single files, hub names and folders without a card."""
        path = Path(folder) / CARD
        if not path.is_file():
            return cls()
        try:
            content = read_json(path, CARD_BYTES)
            if not isinstance(content, dict):
                raise ValueError(f"it is a {type(content).__name__}, not an object")
            defaults, columns = (
                REQUEST.updated(content.get("defaults", {})),
                dict(content.get("schedule", {})),
            )
        except (OSError, ValueError, TypeError) as error:
            raise Damaged(f"{path} is not a model card in JSON ({error}); correct or remove it.") from error
        try:
            checked = Request.parse(**{"prompt": "", **defaults}).given()
        except RequestError as error:
            raise Damaged(f"{path}, defaults: {error}") from None
        schedule = _schedule(path, columns)
        name, family, concepts = (content.get(key) for key in ("name", "family", "concepts"))
        if not all(value is None or isinstance(value, str) for value in (name, family, concepts)):
            raise Damaged(f"{path}: name, family and concepts must be text.")
        if concepts and Path(concepts).name != concepts:
            raise Damaged(f"{path}: concepts is {concepts!r}, but must be the name of a file in this folder.")
        return cls(
            name=name or "",
            family=family,
            defaults={name: checked[name] for name in defaults},
            schedule=schedule,
            concepts=Concepts.read(path.parent / concepts) if concepts else None,
            motion=_motion(path, content.get("motion", {})),
        )


def _motion(path: Path, columns: Any) -> dict[str, Any]:
    """The shape of the motion modules, each column of one of the types that JSON has for it."""
    if not isinstance(columns, dict):
        raise Damaged(f"{path}: motion must be an object with the shape of the motion modules.")
    unknown = sorted(columns.keys() - MOTION_FIELDS.keys())
    if unknown:
        raise Damaged(
            f"{path}: motion has {', '.join(unknown)}, but may only have {', '.join(MOTION_FIELDS)}."
        )
    for name, value in columns.items():
        kind = MOTION_FIELDS[name]
        items = value if isinstance(value, list) else []
        if type(value) is not kind or not all(type(item) is int and item > 0 for item in items):
            words = {list: "a list of whole numbers", bool: "true or false", int: "a whole number"}
            raise Damaged(
                f"{path}: motion has {name} = {value!r:.80}, which must be {words.get(kind, 'text')}."
            )
    return dict(columns)


def _schedule(path: Path, columns: dict[str, Any]) -> NoiseSchedule:
    unknown = sorted(set(columns) - set(CARD_FIELDS))
    if unknown:
        raise Damaged(
            f"{path}: schedule has {', '.join(unknown)}, but may only have {', '.join(CARD_FIELDS)}."
        )
    try:
        return NoiseSchedule(**columns)
    except RequestError as error:
        raise Damaged(f"{path}: {error}") from None
