"""What a single-file checkpoint was trained to predict: noise (epsilon) or velocity. Shapes do not tell.

Read from whatever says so: marks among the keys, metadata, a .yaml beside it, the training step, the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stillmotion.checkpoints.files import Header
from stillmotion.diffusion.schedule import PredictionType
from stillmotion.errors import Damaged
from stillmotion.foreign import read_text

_VELOCITY = re.compile(r"parameterization:\s*[\"']?v\b")
SHEET_BYTES = 2**20
"""Of the .yaml beside a checkpoint; those in use have 3 KB."""
_SD2_BASE_STEP = 875000
"""Training step of the 512-pixel Stable Diffusion 2 base, which predicts noise; the 768-pixel ones do not."""


@dataclass(frozen=True)
class DetectedPrediction:
    """The prediction type and whether the betas end at zero signal, with what told us."""

    prediction_type: PredictionType
    zero_snr: bool
    why: str


def detect_prediction(header: Header, path: Path, base: str | None) -> DetectedPrediction:
    """What the file tells of its prediction type; epsilon (velocity for SD 2) if nothing does."""
    zero_snr = "ztsnr" in header
    if "v_pred" in header:
        return DetectedPrediction("v_prediction", zero_snr, "a v_pred mark among its keys")
    detected = header.metadata.get("modelspec.prediction_type", "")
    if detected:
        return DetectedPrediction(
            "v_prediction" if detected.startswith("v") else "epsilon", zero_snr, "its metadata"
        )
    sheet = path.with_suffix(".yaml")
    if sheet.is_file():
        try:
            velocity = _VELOCITY.search(read_text(sheet, SHEET_BYTES))
        except (OSError, ValueError) as error:
            raise Damaged(
                f"{sheet} beside the checkpoint cannot be read ({error}): correct or remove it."
            ) from error
        return DetectedPrediction("v_prediction" if velocity else "epsilon", zero_snr, sheet.name)
    if base != "sd2":
        return DetectedPrediction("epsilon", zero_snr, "its family")
    if header.extras.get("global_step") == _SD2_BASE_STEP or re.search(r"512|base", path.stem.lower()):
        return DetectedPrediction("epsilon", zero_snr, "its training step or name")
    return DetectedPrediction("v_prediction", zero_snr, "its family")
