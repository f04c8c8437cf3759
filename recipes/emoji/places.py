"""Where the recipe keeps what it downloads and makes: `$STILLMOTION_WORK`, else the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from stillmotion_emoji import FOLDER

WORK = Path(os.environ.get("STILLMOTION_WORK", Path.home() / ".cache" / "stillmotion" / "emoji"))
PACKAGES = WORK / "packages"
STILLS = WORK / "stills"
CLIPS = WORK / "clips"
RUNS = WORK / "runs"
ROOT = Path(__file__).resolve().parents[2]
BUNDLED = FOLDER
"""In a checkout with `packages/stillmotion-emoji` installed as editable: the folder that is committed."""


def write_whole(path: Path, data: bytes) -> None:
    """Write through a temporary name, so that a killed run leaves the old file or the new one, never half
    of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
