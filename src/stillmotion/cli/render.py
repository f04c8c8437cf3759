"""From a request to files: refuse early, sample, keep the latents, decode, write, say where it is.

    checks (nothing loaded yet) -> load -> sample -> OUTPUT.latents.safetensors -> decode -> OUTPUT

The latents are on the disk before decoding starts, and go when the clip is written: what was sampled for
hours is not lost to a crash, a full disk or Ctrl-C at the end. `stillmotion decode` continues from them.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from stillmotion.atomic import check_free, replacing
from stillmotion.cli.output import echo
from stillmotion.cli.progress import Waiting, quiet_libraries, waiting
from stillmotion.cli.trust import remember
from stillmotion.errors import OutputError
from stillmotion.request import Request
from stillmotion.sampling.latents import Latents, keep, latents_path
from stillmotion.video import Clip, check_output, grid

if TYPE_CHECKING:
    from stillmotion.sampling.animator import Animator


@dataclass(frozen=True)
class Target:
    """Where and how to write: the answers to `output_options`."""

    output: str
    force: bool = False
    scale: int = 1
    dither: str = "none"
    quality: int = 90
    sheet: Path | None = None

    @property
    def path(self) -> Path:
        return Path(self.output)

    @classmethod
    def of(cls, output: str, options: Mapping[str, Any]) -> Target:
        """From the values of `output_options`."""
        return cls(
            output, **{name: options[name] for name in ("force", "scale", "dither", "quality", "sheet")}
        )

    def check_files(self, frames: int | None = None) -> None:
        """OutputError now rather than after the work: names that cannot be written, files that exist."""
        check_output(self.output, self.force, frames)
        if self.sheet is not None:
            check_sheet(self.sheet, self.force)
            if os.path.abspath(self.sheet) == os.path.abspath(self.path):
                raise OutputError(f"{self.sheet} is the output as well as the sheet: give them two names.")

    def check(self, frames: int | None = None) -> None:
        """The same, also for the latents that will be kept beside it."""
        self.check_files(frames)
        kept = latents_path(self.path)
        if os.path.lexists(kept) and not self.force:
            raise OutputError(
                f"{kept} holds a clip that was sampled but not decoded: finish it with `stillmotion decode "
                f"{kept}`, or give --force to throw it away."
            )

    def write(self, clip: Clip) -> None:
        """Writes the clip, and its sheet if one is wanted."""
        options: dict[str, Any] = {"scale": self.scale, "dither": self.dither, "quality": self.quality}
        clip.save(self.output, overwrite=self.force, **options)
        if self.sheet is not None:
            save_sheet(clip, self.sheet, self.force, scale=self.scale)

    def of_seed(self, seed: int) -> Target:
        """The same beside it, for one clip of several."""
        path = self.path
        named = path.with_name(f"{path.stem}-seed{seed}{path.suffix}")
        return Target(str(named), self.force, self.scale, self.dither, self.quality)


def render(request: Request, target: Target, count: int, device: str | None, start: float) -> None:
    """Makes `count` clips of consecutive seeds and writes them; more than one also as a grid."""
    if count > 1 and request.seed is None:
        request = request.replace(seed=secrets.randbelow(2**32))
    requests = [request] if count == 1 else [request.replace(seed=request.seed + i) for i in range(count)]
    targets = [target] if count == 1 else [target.of_seed(request.seed) for request in requests]
    since = time.time()
    for each in {target, *targets}:
        each.check(request.frames)
    with waiting() as bars:
        animator = load(bars, request, device)
        requests = [animator.request(each) for each in requests]
        target.check(requests[0].frames)
        for hint in animator.hints(requests[0]):
            bars.say(f"Note: {hint}")
        clips = []
        for number, (each, place) in enumerate(zip(requests, targets, strict=True)):
            bars.clip = f" {number + 1}/{count}" if count > 1 else ""
            clips.append(make(animator, each, place, bars, since))
    for place, clip in zip(targets, clips, strict=True):
        echo(_line(place.path, clip, start if count == 1 else None))
    if count > 1:
        side_by_side = grid(clips)
        target.write(Clip(side_by_side.frames, side_by_side.fps))
        echo(_line(target.path, side_by_side, start, f"{count} seeds side by side"))


def load(bars: Waiting, request: Request, device: str | None) -> Animator:
    """The Animator that a request names."""
    with bars.stage("loading"):
        from stillmotion.sampling.animator import Animator

        quiet_libraries()
        animator = Animator.load(
            request.base,
            request.motion,
            request.loras,
            request.dtype,
            device,
            request.motion_loras,
            request.vae,
            request.embeddings,
        )
        remember(request)
        return animator


def make(animator: Animator, request: Request, target: Target, bars: Waiting, since: float) -> Clip:
    """One clip, with its latents on the disk until it is written; `since` is when this run began."""
    latents = animator.sample(request, bars.step)
    with kept_until_written(latents, target, bars, since):
        clip = animator.decode(latents, bars.step)
        target.write(clip)
    return clip


@contextmanager
def kept_until_written(latents: Latents, target: Target, bars: Waiting, since: float) -> Iterator[None]:
    """Latents in a file while the block runs; they stay, with a word of advice, if it fails.

    Where no disk has room for them the block runs all the same: the clip itself is smaller.
    """
    kept, why = keep(latents, target.path, since)
    if why:
        place = f"kept in {kept}" if kept else "in memory only"
        bars.say(f"Note: {why} What was sampled is {place} until the clip is written.", always=True)
    try:
        yield
    except BaseException:
        if kept is None or not kept.exists():  # its folder may have been taken away
            kept, _ = keep(latents, target.path, since)
        if kept is not None:
            advice = f"`stillmotion decode {shlex.quote(str(kept))}` goes on from there."
            bars.say(f"What was sampled is not lost: {advice}", always=True)
        raise
    if kept is not None:
        kept.unlink(missing_ok=True)


def save_sheet(clip: Clip, path: Path, force: bool, **options: Any) -> None:
    """All frames on one image, as PNG, whole or not at all."""
    with replacing(path, force) as unfinished:
        clip.sheet(**options).save(unfinished, format="PNG")


def check_sheet(path: Path, force: bool) -> None:
    """OutputError if a contact sheet cannot be written there."""
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path} cannot be a contact sheet: its name must end in .png.")
    check_free(path, force)


def free_name(wanted: Path) -> Path:
    """The name, or the first of NAME-2, NAME-3, ... that is free."""
    names = (wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}") for number in range(2, 10_000))
    return next(name for name in (wanted, *names) if not os.path.lexists(name))


def name_of(prompt: str) -> Path:
    """A file name made of the prompt: "A rocket, 3D!" -> a-rocket-3d.gif; free in this folder."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    return free_name(Path(("-".join(words)[:60].rstrip("-") or "clip") + ".gif"))


def _line(path: Path, clip: Clip, start: float | None, what: str = "") -> str:
    seed = f"seed {clip.request.seed}" if clip.request and not what else what
    size = f"{len(clip)} frames of {clip.width}x{clip.height}, {clip.duration:.1f} s"
    size = size if len(clip) > 1 else f"a still of {clip.width}x{clip.height}"
    took = f", made in {monotonic() - start:.1f} s" if start is not None else ""
    return f"{path}: {size}, {seed}{took}"
