"""Models that are installed as Python packages, such as the one that `pip install stillmotion[emoji]` brings.

A package offers its models as entry points of the group `stillmotion.models`: the name, and a function
without arguments that returns the model's folder. In its pyproject.toml:

    [project.entry-points."stillmotion.models"]
    emoji = "stillmotion_emoji:folder"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from stillmotion.errors import UnknownFile

GROUP = "stillmotion.models"
DEFAULT_MODEL = "emoji"
"""What is used where no base is named."""

INSTALL = "pip install 'stillmotion[emoji]' (in a checkout: pip install ./packages/stillmotion-emoji)"


def installed_names() -> list[str]:
    """Names of the models that installed packages offer."""
    return sorted(entry_points(group=GROUP).names)


def installed_models() -> dict[str, Path]:
    """Name and folder of every installed model; UnknownFile for a package that is damaged."""
    return {name: bundled_folder(name) for name in installed_names()}


def bundled_folder(name: str = DEFAULT_MODEL) -> Path:
    """Folder of an installed model; UnknownFile when it is not installed, or its package is damaged."""
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not points:
        raise UnknownFile(
            f"The model {name!r} is not installed: {INSTALL if name == DEFAULT_MODEL else 'install it'}, or "
            "name models of yours with `base=` and `motion=`."
        )
    if len(points) > 1:
        owners = " and ".join(sorted(map(_package, points.values())))
        raise UnknownFile(f"{owners} both bring a model named {name!r}: uninstall one of them.")
    return _folder(*points.values())


def _folder(point: EntryPoint) -> Path:
    try:
        folder = Path(point.load()())
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise UnknownFile(
            f"The model {point.name!r} of the package {_package(point)} cannot be found ({error}): reinstall "
            "the package, or uninstall it."
        ) from error
    if not folder.is_dir():
        raise UnknownFile(
            f"The model {point.name!r} of the package {_package(point)} should be in {folder}, which is no "
            "folder: reinstall the package."
        )
    return folder


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
