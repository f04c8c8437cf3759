"""A job on the command line: its progress while it runs, then a line for each file."""

from __future__ import annotations

from time import monotonic

from stillmotion.cli import Settings
from stillmotion.cli.output import result
from stillmotion.cli.progress import waiting
from stillmotion.cli.trust import remember
from stillmotion.sampling import jobs
from stillmotion.video import Clip


def render(job: jobs.Job, settings: Settings) -> None:
    """Runs a job and says which files it made; with --quiet only their names."""
    with waiting() as show:

        def on_event(event: jobs.Event) -> None:
            show(event)
            if isinstance(event, jobs.Loaded):
                remember(event.request)

        written = jobs.run(job, on_event)
    for each in written:
        took = f", made in {monotonic() - settings.start:.1f} s" if each is written[-1] else ""
        result(each.path, f"{describe(each.clip, len(job.requests))}{took}")


def describe(clip: Clip, count: int = 1) -> str:
    """Its size, length and seed in words; `count` clips make a grid, which has no seed."""
    size = f"a still of {clip.width}x{clip.height}"
    if len(clip) > 1:
        size = f"{len(clip)} frames of {clip.width}x{clip.height}, {clip.duration:.1f} s"
    return f"{size}, seed {clip.request.seed}" if clip.request else f"{size}, {count} seeds side by side"
