from __future__ import annotations

import time

from stillmotion.training.engine.progress import Progress


def test_it_speaks_now_and_then_with_the_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = []
    progress = Progress(said.append, "latents", "clips", 40)
    for done in range(1, 41):
        now[0] += 1
        progress(done)
    assert said == [
        "latents: 11 of 40 clips, 29 s left",
        "latents: 22 of 40 clips, 18 s left",
        "latents: 33 of 40 clips, 7 s left",
    ]
    assert progress.took == "40 s"
