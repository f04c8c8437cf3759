"""The configs of a pipeline as one text, for the header of a single file, and as a folder again.

With them a file of any sizes (the emoji base, a fine-tune with its own schedule) can be loaded by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stillmotion.checkpoints.tokenizer import clip_vocabulary
from stillmotion.errors import Damaged
from stillmotion.foreign import parse_json

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline

CONFIGS_KEY = "stillmotion.configs"
"""Key in a safetensors header: JSON of {name of a file in a diffusers folder: its text}."""

_NAME = re.compile(r"(\w+/)?\w+\.(json|txt)")
_WORDS = ("tokenizer.json", "vocab.json", "merges.txt")
_OF_A_MACHINE = ("_name_or_path", "name_or_path")


def packed(pipeline: Pipeline) -> str:
    """All configs of a pipeline, and its vocabulary where it is not the common CLIP's."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        pipeline.save_config(folder)
        for part, module in pipeline.components.items():
            _save_config(module, folder / part)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return json.dumps({file.relative_to(folder).as_posix(): _text(file) for file in files})


@contextmanager
def unpacked(text: str, name: str) -> Iterator[Path]:
    """A folder with the configs of a header while the block runs; Damaged if anything else is among them."""
    try:
        files = parse_json(text)
    except ValueError as error:
        raise Damaged(f"The configs in the header of {name} cannot be read ({error}).") from error
    if not isinstance(files, dict):
        raise Damaged(f"The configs in the header of {name} are a {type(files).__name__}, not files by name.")
    with TemporaryDirectory() as place:
        for path, content in files.items():
            if not _NAME.fullmatch(path) or not isinstance(content, str):
                raise Damaged(f"The header of {name} has {path!r} among its configs, which is none.")
            file = Path(place, path)
            file.parent.mkdir(exist_ok=True)
            file.write_text(content, encoding="utf-8")
        yield Path(place)


def _save_config(module: Any, folder: Path) -> None:
    if hasattr(module, "get_vocab"):
        module.save_pretrained(folder)
        if _common(module):
            for name in _WORDS:
                (folder / name).unlink(missing_ok=True)
    elif hasattr(module, "save_config"):
        module.save_config(folder)
    elif hasattr(module, "config"):
        module.config.save_pretrained(folder)


def _common(tokenizer: Any) -> bool:
    """Whether a tokenizer has CLIP's own vocabulary, which comes with the library."""
    return tokenizer.get_vocab() == clip_vocabulary()[0]


def without_paths(text: str) -> str:
    """A config in JSON without the paths of the machine it was loaded on."""
    settings = {key: value for key, value in parse_json(text).items() if key not in _OF_A_MACHINE}
    return json.dumps(settings, indent=2) + "\n"


def _text(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return text if file.suffix != ".json" or file.name in _WORDS else without_paths(text)
