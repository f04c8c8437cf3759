"""Foreign files, mutated: each is accepted or ends in one sentence of ours; nothing else happens.

`STILLMOTION_FUZZ=1000 pytest tests/fuzz` tries so many for each reader; the inputs are the same for the same
number. `python -m tests.fuzz.run --inputs 10000` counts them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import seeds
from mutate import hostile_pickles, mutated, safetensors
from targets import TARGETS
from worker import Watch, Worker, too_late, tried

from stillmotion.checkpoints.identify import identify
from stillmotion.errors import Damaged, StillmotionError

ROUNDS = int(os.environ.get("STILLMOTION_FUZZ", "8"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process of its own by fork")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(seeds.make(tmp_path_factory.mktemp("fuzz")))
    yield made
    made.close()


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_is_accepted_or_refused_in_a_sentence(target: str, worker: Worker) -> None:
    assert worker.try_input(target, 0).kind == "accepted"  # what is changed is good
    for number in range(1, ROUNDS * TARGETS[target].weight):
        outcome = worker.try_input(target, number)
        assert outcome.kind in ("accepted", "sentence"), f"{target} {number}: {outcome}"


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("accepted", lambda: None),
        ("sentence", lambda: identify(Path("missing.safetensors"))),
        ("other", lambda: {}["x"]),
        ("memory", lambda: bytearray(b"x" * (5 << 28))),
        ("code", lambda: os.system("true")),
        ("code", lambda: (Path(__file__).parent / "trace").open("a")),
    ],
)
def test_faults_are_told_apart(kind: str, act: Callable[[], object], tmp_path: Path) -> None:
    """The measuring itself, in a process of its own (an audit hook stays for ever)."""
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_measured, args=(other, act, tmp_path))
    process.start()
    assert pipe.recv().kind == kind
    process.join()
    (Path(__file__).parent / "trace").unlink(missing_ok=True)


def _measured(pipe: Any, act: Callable[[], object], folder: Path) -> None:
    signal.signal(signal.SIGALRM, too_late)
    watch = Watch(folder)
    sys.addaudithook(watch)
    pipe.send(tried(act, watch))


@pytest.mark.parametrize("number", range(len(hostile_pickles())))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_hostile_pickles_run_nothing(number: int, suffix: str, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / f"x{suffix}"
    file.write_bytes(hostile_pickles(str(trace))[number])
    with pytest.raises(StillmotionError):
        identify(file)
    assert not trace.exists()


def test_a_header_of_a_million_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = b"{" + b" " * (2**24 + 1) + b"}"
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Damaged, match="has a header of 16,777,219 bytes"):
        identify(tmp_path / "x.safetensors")


def test_mutations_are_the_same_for_the_same_number() -> None:
    tried = [[mutated("x.json", b'{"a": [1, {}], "b": "c"}', random.Random(number)) for number in range(300)]]
    tried += [
        [mutated("x.json", b'{"a": [1, {}], "b": "c"}', random.Random(number)) for number in range(300)]
    ]
    assert tried[0] == tried[1]


def test_a_good_file_of_zeros_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors({"emb_params": (2, 8)}))
    assert identify(tmp_path / "x.safetensors").kind == "embedding"
