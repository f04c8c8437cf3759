"""What headers and configs tell of a request before anything is loaded: files that are missing, in each
other's place, or too small for what is asked. Reads no weights and needs no torch.
"""

from __future__ import annotations

from pathlib import Path

from stillmotion.checkpoints.checkpoint import Checkpoint, open_checkpoint
from stillmotion.checkpoints.files import read_json
from stillmotion.checkpoints.hub import INSIDE, locate
from stillmotion.errors import Mismatch, RequestError, WeightsError
from stillmotion.request import Request
from stillmotion.request.installed_models import bundled_folder
from stillmotion.request.model_files import model_names

BASES = ("checkpoint", "pipeline")
NO_MOTION = "none"
"""`motion="none"`: the base alone, for stills."""


def check_before_loading(request: Request) -> None:
    """RequestError, or WeightsError kin, for what cannot be drawn; what only the weights tell comes later."""
    for field, name in model_names(request):
        if (field, name) != ("motion", NO_MOTION):
            locate(name)
    base = open_checkpoint(bundled_folder() if request.base is None else request.base)
    place = motion_place(request.motion, base.source, base.path)
    motion = None if place is None else open_checkpoint(place)
    if request.motion is not None and motion is not None:
        check_places(base, open_checkpoint(request.motion))
    _check_frames(request, motion)
    _check_clip_skip(request, base.path)


def check_places(base: Checkpoint, motion: Checkpoint) -> None:
    """Mismatch where base and motion stand in each other's place."""
    if base.info.kind == "motion" and motion.info.kind in BASES:
        raise Mismatch(
            f"Base and motion are swapped: {base.source} is {base.info.title} and {motion.source} is "
            f"{motion.info.title}. Give `base={motion.source!r}` and `motion={base.source!r}`."
        )


def motion_place(motion: str | Path | None, base: str | Path, place: Path) -> Path | None:
    """Where the motion is: named, or inside the folder of the base; None for stills."""
    if motion is not None:
        if str(motion) == NO_MOTION:
            return None
        place = locate(motion)
    inside = next((place / part for part in INSIDE if (place / part).is_dir()), None)
    if inside is None and motion is None:
        raise WeightsError(
            f"{base} is a text-to-image model and brings no motion of its own: name a motion module that "
            "fits it with `motion=FILE`, such as v3_sd15_mm.ckpt for Stable Diffusion 1.5, or "
            f"`motion={NO_MOTION!r}` for stills."
        )
    return inside or place


def _check_frames(request: Request, motion: Checkpoint | None) -> None:
    family = None if motion is None else motion.info.spec
    config = None if family is None else family.config
    if request.frames is None or config is None or request.frames <= config.positions:
        return
    raise RequestError(
        f"frames is {request.frames}, but {config.name} motion has positions for {config.positions} at once: "
        f"use at most `frames={config.positions}`."
    )


def _check_clip_skip(request: Request, base: Path) -> None:
    config = base / "text_encoder" / "config.json"
    if request.clip_skip is None or not config.is_file():
        return
    layers = read_json(config).get("num_hidden_layers")
    most = layers - (base / "text_encoder_2").is_dir() if isinstance(layers, int) else None
    if most is not None and request.clip_skip > most:
        raise RequestError(
            f"clip_skip is {request.clip_skip}, but the text encoder has layers for at most {most} "
            f"(`clip_skip={most}`)."
        )
