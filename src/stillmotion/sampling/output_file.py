"""Where a clip is written and how: free names, checks before the work, the clip and its contact sheet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillmotion.atomic import check_free, replacing
from stillmotion.errors import OutputError
from stillmotion.sampling.latents import latents_path
from stillmotion.video import Clip, check_output
from stillmotion.video.animated_images import png_text
from stillmotion.video.metadata import Tag
from stillmotion.video.palette import Dither


@dataclass(frozen=True)
class Target:
    """A file or folder to write, and how; `sheet` is a PNG with all frames to write beside it."""

    output: str
    force: bool = False
    scale: int = 1
    dither: Dither = "none"
    quality: int = 90
    sheet: Path | None = None

    @property
    def path(self) -> Path:
        return Path(self.output)

    @classmethod
    def of(cls, output: str, options: Mapping[str, Any]) -> Target:
        """From options of the command line, which have the names of these fields."""
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
                f"{kept}`, or throw it away with `overwrite=True`."
            )

    def write(self, clip: Clip) -> None:
        """Writes the clip, and its sheet if one is wanted."""
        clip.save(
            self.output, scale=self.scale, dither=self.dither, quality=self.quality, overwrite=self.force
        )
        if self.sheet is not None:
            save_sheet(clip, self.sheet, self.force, scale=self.scale)

    def named(self, suffix: str) -> Target:
        """The same beside it, for one clip of several: x.gif -> x-SUFFIX.gif, without a sheet."""
        path = self.path
        return replace(self, output=str(path.with_name(f"{path.stem}-{suffix}{path.suffix}")), sheet=None)


def save_sheet(clip: Clip, path: Path, force: bool, **options: Any) -> None:
    """All frames on one image, as PNG, whole or not at all; it carries the requests of the clip.

    Args:
        clip: what is shown.
        path: the file.
        force: whether a file that exists is replaced.
        options: those of `Clip.sheet`.
    """
    sheet = clip.sheet(**options)
    requests = clip.requests or (() if clip.request is None else (clip.request,))
    tag = Tag(1, clip.fps, sheet.width, sheet.height, None, requests, clip.files)
    with replacing(path, force) as unfinished:
        sheet.save(unfinished, format="PNG", pnginfo=png_text(tag.to_json(path.parent)))


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
