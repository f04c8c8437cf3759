"""Where the samples of a step stand in the folder of a run, and whether they are whole."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def sheet_path(folder: Path, step: int) -> Path:
    """Where the samples of a step stand; the moving ones have the same name with .webp."""
    return folder / f"step-{step:08d}.png"


def is_whole(sheet: Path) -> bool:
    """Whether a sheet and its moving clips are there and can be read to their ends."""
    try:
        for path in (sheet, sheet.with_suffix(".webp")):
            with Image.open(path) as image:
                image.load()
    except (OSError, SyntaxError, ValueError):  # Pillow's for files that are missing, cut or no images
        return False
    return True
