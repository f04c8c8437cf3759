"""Jobs: requests become files, without a terminal. The command line and the server run the same ones.

    checks (nothing loaded yet) -> load -> sample -> OUTPUT.latents.safetensors -> decode -> OUTPUT

What happens is reported as events to one callback; an exception that it raises stops the job. The latents are
on the disk before decoding starts, and go when the clip is written: what was sampled for hours is not lost to
a crash, a full disk or Ctrl-C at the end. `finish` continues from them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillmotion.request import Request
from stillmotion.sampling.latents import Latents, keep
from stillmotion.sampling.output_file import Target
from stillmotion.sampling.preflight import check_before_loading
from stillmotion.video import Clip, grid

if TYPE_CHECKING:
    from stillmotion.sampling.animator import Animator


@dataclass(frozen=True)
class Loading:
    """The models of this request are being loaded; `Loaded` follows."""

    request: Request


@dataclass(frozen=True)
class Loaded:
    """The models of this request are there."""

    request: Request


@dataclass(frozen=True)
class Step:
    """`done` of `total` steps of a stage ("sampling", "decoding"), of the clip numbered `clip` from 1."""

    stage: str
    done: int
    total: int
    clip: int = 1
    clips: int = 1


@dataclass(frozen=True)
class Note:
    """A sentence for the user; an `urgent` one is about his work rather than his request."""

    text: str
    urgent: bool = False


@dataclass(frozen=True)
class Interrupted:
    """The job ends with an exception, but what was sampled is in this file."""

    latents: Path


@dataclass(frozen=True)
class Written:
    """A clip is in its file."""

    path: Path
    clip: Clip


Event = Loading | Loaded | Step | Note | Interrupted | Written
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Job:
    """Clips to make and where they go: one into `target`; several into a file each, and all side by side."""

    requests: tuple[Request, ...]
    target: Target
    device: str | None = None

    @classmethod
    def of(cls, request: Request, target: Target, count: int = 1, device: str | None = None) -> Job:
        """`count` clips of consecutive seeds; the first seed is drawn if the request has none."""
        if count == 1:
            return cls((request,), target, device)
        first = secrets.randbelow(2**32) if request.seed is None else request.seed
        return cls(tuple(request.replace(seed=first + i) for i in range(count)), target, device)

    def targets(self) -> tuple[Target, ...]:
        """Where each clip goes; of several x-seed7.gif, or x-2.gif where seeds repeat or are not known."""
        if len(self.requests) == 1:
            return (self.target,)
        seeds = [request.seed for request in self.requests]
        told = None not in seeds and len(set(seeds)) == len(seeds)
        return tuple(
            self.target.named(f"seed{seed}" if told else str(number))
            for number, seed in enumerate(seeds, start=1)
        )

    def check(self) -> None:
        """StillmotionError kin for what cannot be written or drawn, as far as names and headers tell."""
        for target, request in zip(self.targets(), self.requests, strict=True):
            target.check(request.frames)
        self.target.check(self.requests[0].frames)
        unlike = {(each.models, each.frames, each.clip_skip): each for each in self.requests}
        for request in unlike.values():
            check_before_loading(request)


def run(job: Job, on_event: OnEvent = ignore) -> list[Written]:
    """Makes and writes all clips of a job; raises StillmotionError kin, with nothing half-written left."""
    job.check()
    since, targets = time.time(), job.targets()
    clips: list[Clip] = []
    animator: Animator | None = None
    asked = job.requests[0]
    written = []
    for number, (request, target) in enumerate(zip(job.requests, targets, strict=True), start=1):
        if animator is None or request.models != asked.models:
            animator, asked = load(request, job.device, on_event), request
            _tell(animator, request, on_event)
        complete = animator.request(request)
        target.check(complete.frames)
        clips.append(_make(animator, complete, target, since, on_event, (number, len(targets))))
        written.append(Written(target.path, clips[-1]))
        on_event(written[-1])
    if len({(clip.width, clip.height, clip.fps) for clip in clips}) > 1:
        on_event(Note("The clips differ in size or rate, so they are not shown side by side.", urgent=True))
    elif len(clips) > 1:
        together = replace(grid(clips), request=None)  # several requests made it, not one
        job.target.write(together)
        written.append(Written(job.target.path, together))
        on_event(written[-1])
    return written


def finish(latents: Latents, target: Target, device: str | None = None, on_event: OnEvent = ignore) -> Clip:
    """Decodes latents and writes the clip; of the request's models only the VAE is loaded."""
    target.check_files(latents.request.frames)
    on_event(Loading(latents.request))
    from stillmotion.sampling.loading import load_decoder

    vae = load_decoder(latents.request, device)
    on_event(Loaded(latents.request))
    clip = latents.decode(vae, lambda *step: on_event(Step(*step)))
    target.write(clip)
    on_event(Written(target.path, clip))
    return clip


def load(request: Request, device: str | None, on_event: OnEvent = ignore) -> Animator:
    """The Animator that a request names."""
    on_event(Loading(request))
    from stillmotion.sampling.animator import Animator

    animator = Animator.load(**request.models.load_arguments, device=device)
    on_event(Loaded(request))
    return animator


def _tell(animator: Animator, request: Request, on_event: OnEvent) -> None:
    for hint in animator.hints(animator.request(request)):
        on_event(Note(hint))


def _make(
    animator: Animator,
    request: Request,
    target: Target,
    since: float,
    on_event: OnEvent,
    place: tuple[int, int],
) -> Clip:
    """One clip, with its latents on the disk until it is written; `since` is when this job began."""

    def on_progress(stage: str, done: int, total: int) -> None:
        on_event(Step(stage, done, total, *place))

    latents = animator.sample(request, on_progress)
    with kept_until_written(latents, target, since, on_event):
        clip = animator.decode(latents, on_progress)
        target.write(clip)
    return clip


@contextmanager
def kept_until_written(
    latents: Latents, target: Target, since: float, on_event: OnEvent = ignore
) -> Iterator[None]:
    """Latents in a file while the block runs; if it fails they stay, and `Interrupted` tells where.

    Where no disk has room for them the block runs all the same: the clip itself is smaller.

    Args:
        latents: what was sampled.
        target: where the clip will be written; the latents lie beside it.
        since: seconds of the epoch; latents of this name that are older are replaced.
        on_event: is told where they lie, if not beside the target.
    """
    kept, why = keep(latents, target.path, since)
    if why:
        place = f"kept in {kept}" if kept else "in memory only"
        on_event(Note(f"{why} What was sampled is {place} until the clip is written.", urgent=True))
    try:
        yield
    except BaseException:
        if kept is None or not kept.exists():  # its folder may have been taken away
            kept, _ = keep(latents, target.path, since)
        if kept is not None:
            on_event(Interrupted(kept))
        raise
    if kept is not None:
        kept.unlink(missing_ok=True)
