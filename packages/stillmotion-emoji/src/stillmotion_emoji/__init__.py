"""The model "emoji" for stillmotion: a folder of weights, which the library finds by an entry point.

It is a diffusers folder too: `StableDiffusionPipeline.from_pretrained(stillmotion_emoji.FOLDER)`.
"""

from __future__ import annotations

from pathlib import Path

__version__ = "0.2.0"

FOLDER = Path(__file__).with_name("model")
"""The model: a text-to-image model, its motion in `motion/`, LoRAs in `loras/`, and its card."""


def folder() -> Path:
    """The model's folder; this is what the entry point of the group `stillmotion.models` names."""
    return FOLDER
