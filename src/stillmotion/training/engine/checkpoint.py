"""Trainer state on disk: whole or not there at all, the last few kept, the newest found again.

    OUTPUT/checkpoints/step-00000500/state.safetensors    weights, ema, optimizer moments (fp32 vectors)
                                     trainer.json         step, settings, names and shapes of the weights

Randomness needs no state (rng.py) and the learning rate is a function of the step, so this is everything.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillmotion.atomic import FolderKind, durable, sweep
from stillmotion.errors import TrainingError
from stillmotion.foreign import read_json
from stillmotion.request.aliases import TRAINING

PREFIX = "step-"
CHECKPOINT = FolderKind("a checkpoint", ("trainer.json",), r"state\.safetensors|trainer\.json")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read."""

    folder: Path
    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [
        path
        for path in (output / "checkpoints").glob(f"{PREFIX}*")
        if re.fullmatch("[0-9]{1,18}", path.name.removeprefix(PREFIX))
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def write(
    output: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int
) -> Path:
    """Writes the state after `step` steps, then removes all but the last `keep`."""
    path = output / "checkpoints" / f"{PREFIX}{step:08d}"
    sweep(path.parent)
    with durable(path, CHECKPOINT) as folder:
        folder.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors"
        )
        (folder / "trainer.json").write_text(json.dumps({"step": step, **facts}, indent=1), "utf-8")
    for old in checkpoints(output)[:-keep]:
        shutil.rmtree(old)
    return path


def read_newest(output: Path, log: Callable[[str], None] = lambda sentence: None) -> Saved | None:
    """The newest checkpoint of a run that is whole, or None when it has none.

    Damaged ones after it are said, and renamed to step-N.damaged so that they count no more. TrainingError
    when none is whole, or when the disk refuses.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(output)):
        try:
            saved = _read(path)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            damaged.append((path, f"{type(error).__name__}: {error}"))
        except (FileNotFoundError, NotADirectoryError) as error:
            damaged.append((path, f"{error.filename or path} is missing"))
        except OSError as error:
            raise TrainingError(
                f"The checkpoint {path} cannot be read ({error.strerror or error})."
            ) from error
        else:
            for bad, why in damaged:
                log(f"Note: the checkpoint {bad} is damaged ({why}), so the run goes on from {path.name}.")
                _set_aside(bad)
            return saved
    if damaged:
        path, why = damaged[0]
        raise TrainingError(
            f"The checkpoint {path} is damaged ({why}) and no other one is whole; remove this folder, "
            "and the run begins anew."
        )
    return None


def last_settings(output: Path) -> dict[str, Any]:
    """Settings of the newest checkpoint by their present names; none where there is no readable one."""
    for path in reversed(checkpoints(output)):
        try:
            facts = json.loads((path / "trainer.json").read_text("utf-8"))
            return TRAINING.updated(facts["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # `read_newest` says what is damaged
    return {}


def _read(path: Path) -> Saved:
    """One checkpoint, or what Python and safetensors raise for files that are cut, empty or of others."""
    facts = read_json(path / "trainer.json")
    step = facts["step"]
    if not isinstance(step, int) or step != int(path.name.removeprefix(PREFIX)):
        raise ValueError(f"trainer.json is of step {step!r}")
    tensors = load_file(path / "state.safetensors")
    weights = tensors["weights"]
    wanted = sum(math.prod(shape) for shape in facts.get("shapes", {}).values()) or weights.numel()
    for name in ("weights", "ema"):
        tensor = tensors.get(name, weights)
        if tensor.numel() != wanted:
            raise ValueError(
                f"state.safetensors has {tensor.numel()} numbers in {name!r} instead of {wanted}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"state.safetensors has nan or inf in {name!r}")
    return Saved(path, step, tensors, {"settings": {}, "shapes": {}} | facts)


def _set_aside(path: Path) -> None:
    """Renames a damaged checkpoint: nothing is lost, and it is never taken for the newest again."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)


def check_shapes(saved: Saved, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """TrainingError when the checkpoint is of other weights than these."""
    there = {name: tuple(shape) for name, shape in saved.facts["shapes"].items()}
    if there == dict(shapes):
        return
    odd = sorted(name for name in {*there, *shapes} if there.get(name) != shapes.get(name))
    name = odd[0]
    raise TrainingError(
        f"{saved.folder} is of another network: {len(odd)} weights differ, for example {name} is "
        f"{there.get(name, 'missing')} there and {shapes.get(name, 'missing')} here. "
        "Give another output folder, or the settings the run was started with."
    )


def changes(saved: Saved, settings: Mapping[str, Any]) -> list[str]:
    """Settings that are not those of the checkpoint, in words."""
    before = TRAINING.updated(saved.facts["settings"])
    return [
        f"{name} was {before.get(name)!r} until step {saved.step} and is {value!r} from here on"
        for name, value in settings.items()
        if not _same(before.get(name), value)
    ]


def _same(before: Any, value: Any) -> bool:
    """Equal values, or two spellings of one path."""
    if isinstance(before, str) and isinstance(value, str):
        return before == value or os.path.abspath(before) == os.path.abspath(value)
    return bool(before == value)
