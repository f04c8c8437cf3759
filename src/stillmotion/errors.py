"""What can go wrong, in words for the user.

StillmotionWarning         a note to the user: shown by the CLI, unlike the warnings of libraries
StillmotionError           one sentence: what was found, what was expected, what to do (the CLI exits with 2)
├── RequestError           a field of a request or a config
├── WeightsError           a file of weights
│   ├── UnknownFile        nothing we know by its keys
│   ├── WrongKind          a good file in the wrong place (a motion LoRA given as a style LoRA)
│   ├── Mismatch           good files that do not fit each other (an SDXL module on SD 1.5)
│   ├── Damaged            truncated, a web page saved as .safetensors, not a file of weights
│   └── Unsafe             a pickle that wants to run code
├── AttachError            motion that does not fit the UNet or the batch
├── DataError              clips and captions for training
├── OutputError            a file that cannot be written
├── SamplingError          numbers that ran away while a clip was drawn
└── TrainingError          a run that cannot start or has gone wrong
"""

from __future__ import annotations

import re

LONGEST = 2000
LONGEST_WORD = 400
"""Characters of a message, and of a word in it, that are shown whole."""


def _short(message: str) -> str:
    """The message without the middle of what is too long to be read: words of a file, mostly."""
    if len(message) <= LONGEST_WORD:
        return message
    message = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:200]}...{word[0][-100:]}", message)
    return message if len(message) <= LONGEST else f"{message[:1200]}... {message[-700:]}"


class StillmotionWarning(UserWarning):
    """What the user should know; never silenced by our own code."""


class StillmotionError(Exception):
    """Base of all errors meant for the user; its message is one sentence (or a few short ones)."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(_short(message))


class RequestError(StillmotionError):
    """A field of a request or a config has a value that cannot be used."""


class WeightsError(StillmotionError):
    """A file of weights cannot be used as asked."""


class UnknownFile(WeightsError):
    """None of the known layouts matches the keys of the file."""


class WrongKind(WeightsError):
    """The file is good, but not what belongs here."""


class Mismatch(WeightsError):
    """Two good files do not fit each other."""


class Damaged(WeightsError):
    """The file is truncated or not a file of weights at all."""


class Unsafe(WeightsError):
    """The pickle wants to run code and was not loaded."""


class AttachError(StillmotionError):
    """Motion does not fit the UNet or the batch."""


class DataError(StillmotionError):
    """Training data that cannot be read."""


class OutputError(StillmotionError):
    """A file that cannot be written."""


class SamplingError(StillmotionError):
    """Sampling or decoding gave values that are not finite: every pixel would be black."""


class TrainingError(StillmotionError):
    """A run that cannot start, or that has gone wrong."""
