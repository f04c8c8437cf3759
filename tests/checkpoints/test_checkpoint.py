"""A file of weights is opened once, whatever is asked of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from loras import random_parts
from safetensors.torch import save_file
from tiny import TINY_MOTION, tiny_pipeline

from stillmotion import Animator, Lora, MotionModel
from stillmotion.checkpoints.checkpoint import Checkpoint, open_checkpoint
from stillmotion.checkpoints.files import Header
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.checkpoints.prediction import detect_prediction
from stillmotion.errors import WeightsError

WATCHED: list[Counter[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED and event == "open" and isinstance(arguments[0], (str, Path)):
        WATCHED[-1][str(arguments[0])] += 1


sys.addaudithook(_hook)


def lora_file(path: Path, seed: int = 0) -> Path:
    return Lora(random_parts(tiny_pipeline("sd15"), seed=seed)).save(path)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often Python opened each file, and how often safetensors or torch did ("mapped NAME")."""
    counts: Counter[str] = Counter()
    map_file, load = safetensors.safe_open, torch.load

    def mapped(path: Any, *args: Any, **kwargs: Any) -> Any:
        counts[f"mapped {Path(path).name}"] += 1
        return map_file(path, *args, **kwargs)

    def loaded(path: Any, *args: Any, **kwargs: Any) -> Any:
        counts[f"mapped {Path(getattr(path, 'name', path)).name}"] += 1
        return load(path, *args, **kwargs)

    monkeypatch.setattr(safetensors, "safe_open", mapped)
    monkeypatch.setattr(torch, "load", loaded)
    WATCHED.append(counts)
    yield counts
    WATCHED.pop()


def test_an_animator_opens_each_file_once(
    opens: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillmotion.sampling.loading.records_of", lambda names: ())  # their fingerprints
    base = save_single_file(tiny_pipeline("sd15"), tmp_path / "base.safetensors")
    motion = MotionModel(TINY_MOTION).save(tmp_path / "motion.safetensors")
    first, second = (lora_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    opens.clear()
    Animator.load(base, motion=motion, loras={first: 1.0, second: 0.5})
    for file in (base, motion, first, second):
        assert opens[str(file)] == 1 and opens[f"mapped {file.name}"] == 1, (file, opens)


def test_the_counter_counts(opens: Counter[str], tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    for _ in range(2):
        Checkpoint(tmp_path / "x.safetensors", "x").state()
    assert opens[str(tmp_path / "x.safetensors")] == 2 == opens["mapped x.safetensors"]


def test_what_is_open_is_identified_for_nothing(opens: Counter[str], tmp_path: Path) -> None:
    opened = open_checkpoint(lora_file(tmp_path / "it.safetensors"))
    assert identify(opened).kind == "lora"
    opens.clear()
    assert identify(opened) is identify(opened) is opened.info
    assert open_checkpoint(opened) is opened
    assert Lora.load(opened).name == "it.safetensors"
    assert not opens  # its tensors were mapped when its header was read


def test_opening_reads_nothing_but_says_what_is_not_there(opens: Counter[str], tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not weights")
    opens.clear()
    opened = open_checkpoint(tmp_path / "x.safetensors")
    assert not opens
    with pytest.raises(WeightsError, match="x.safetensors"):
        _ = opened.info
    with pytest.raises(WeightsError, match="There is no file or folder"):
        open_checkpoint(tmp_path / "y.safetensors")


@pytest.mark.parametrize("sheet", [b"parameterization: \xff", b"x" * 2**21])
def test_a_sheet_beside_a_checkpoint_that_is_no_text_is_a_sentence(sheet: bytes, tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    file.with_suffix(".yaml").write_bytes(sheet)
    with pytest.raises(WeightsError, match=r"it\.yaml beside the checkpoint cannot be read"):
        detect_prediction(Header({}), file, "sd2")
    file.with_suffix(".yaml").write_text("parameterization: v")
    assert detect_prediction(Header({}), file, "sd15").prediction_type == "v_prediction"
