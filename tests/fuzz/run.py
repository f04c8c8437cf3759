"""`python -m tests.fuzz.run --inputs 10000`: tries so many inputs and says what became of them.

One process; the same numbers are the same inputs. `--only TARGET` tries one target, `--first N` begins at
number N, `--show N` names that many places of faults.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import seeds
import torch
from targets import TARGETS
from worker import Worker

FAULTS = ("other", "hang", "memory", "crash", "code")


def plan(inputs: int, only: str | None) -> list[tuple[str, int]]:
    """Targets and how many inputs each gets, by their weights; at least the seeds themselves."""
    chosen = {name: target for name, target in TARGETS.items() if only in (None, name)}
    whole = sum(target.weight for target in chosen.values())
    return [(name, max(1, round(inputs * target.weight / whole))) for name, target in chosen.items()]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--show", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began, kinds, places, slowest = time.monotonic(), Counter(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(seeds.make(Path(folder)))
        for name, count in plan(asked.inputs, asked.only):
            mine: Counter[str] = Counter()
            for number in range(asked.first, asked.first + count):
                outcome = worker.try_input(name, number)
                mine[outcome.kind] += 1
                slowest.append((outcome.seconds, outcome.memory >> 20, name, number))
                if outcome.kind in FAULTS:
                    place = f"{outcome.kind}: {outcome.what[:160]}"
                    places.setdefault((name, outcome.what.partition(":")[0]), []).append((number, place))
            print(f"{name}: {dict(mine)}", flush=True)
            kinds += mine
        worker.close()
    for (name, _), found in sorted(places.items(), key=lambda item: -len(item[1]))[: asked.show]:
        print(f"{len(found)}x [{name} {found[0][0]}] {found[0][1]}")
    total, bad = sum(kinds.values()), sum(kinds[kind] for kind in FAULTS)
    print(f"{total} inputs in {time.monotonic() - began:.0f} s: {dict(kinds)}; {len(places)} places")
    print(f"faults: {bad} ({100 * bad / total:.2f} %); slowest {max(slowest)[0]:.1f} s {max(slowest)[2:]}, "
          f"most memory {max(row[1] for row in slowest)} MiB")  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
