"""Trainer state on disk: whole or not there at all, the last few kept, the newest found again.

    OUTPUT/checkpoints/step-00000500/state.safetensors    weights, ema, optimizer moments (fp32 vectors)
                                     trainer.json         step, settings, names and shapes of the weights

Randomness needs no state (draws.py) and the learning rate is a function of the step, so this is everything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from stillmotion.atomic import FolderKind, durable, sweep
from stillmotion.errors import TrainingError

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
        if path.name.removeprefix(PREFIX).isdigit()
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


def read_newest(output: Path) -> Saved | None:
    """The newest checkpoint of a run, or None when it has none."""
    found = checkpoints(output)
    if not found:
        return None
    path = found[-1]
    try:
        facts = json.loads((path / "trainer.json").read_text("utf-8"))
        return Saved(path, facts["step"], load_file(path / "state.safetensors"), facts)
    except Exception as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged ({type(error).__name__}: {error}); remove this folder, "
            "and the run goes on from the one before it."
        ) from error


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
    before = saved.facts["settings"]
    return [
        f"{name} was {before.get(name)!r} until step {saved.step} and is {value!r} from here on"
        for name, value in settings.items()
        if before.get(name) != value
    ]
