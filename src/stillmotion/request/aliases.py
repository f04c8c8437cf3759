"""Names that were changed and go on working: fields of requests, settings of trainings, motion columns,
layouts.

Clips, run folders, YAML files and model files carry the names of the version that wrote them. Each table says
what such a name is called now, and `updated` is the one place that applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillmotion.errors import RequestError


@dataclass(frozen=True)
class Aliases:
    """`names` is old name -> new name; `values` is, for a name as it was given, old value -> new value."""

    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def updated(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields by their present names and values; RequestError if old and new name disagree."""
        found: dict[str, Any] = {}
        for name, value in dict(fields).items():
            now = self.names.get(name, name)
            new = self.value(name, value)
            if now in found and found[now] != new:
                raise RequestError(f"{now} is given twice with different values, once by its old name.")
            found[now] = new
        return found

    def value(self, name: str, value: Any) -> Any:
        """The present value of a field; all others stay as they are."""
        known = self.values.get(name, {})
        return known.get(value.strip().lower(), value) if isinstance(value, str) else value

    def old_names(self, name: str) -> list[str]:
        """What a field was called before."""
        return [old for old, new in self.names.items() if new == name]


NORMS = {"frame": "per-frame", "clip": "pooled"}
"""Statistics of group norms, as specs and configs had them."""

REQUEST = Aliases(
    names={"motion_strength": "motion_scale", "parity": "group_norm", "lora_parity": "lora_alpha"},
    values={
        "parity": {"original": "family", "diffusers": "pooled"},
        "lora_parity": {"kohya": "use", "original": "ignore"},
    },
)
TRAINING = Aliases(
    names={"near_frames": "local_init", "camera_unseen": "static_input_fraction"},
    values={"motion_norm": NORMS},
)
MOTION_CONFIG = Aliases(values={"motion_norm": NORMS, "resnet_norm": NORMS})

ORIGINAL = "original"
"""What the layouts of LDM checkpoints, of motion modules and of motion LoRAs were all called."""


def layout_of_kind(layout: str | None, kind: str) -> str | None:
    """The present name of a layout of this kind of file."""
    if layout != ORIGINAL:
        return layout
    return "ldm" if kind in ("checkpoint", "pipeline") else "animatediff"
