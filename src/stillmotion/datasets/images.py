"""Images with captions for training: found, measured, put into buckets, read as pixels.

dog/a.png  dog/a.txt        caption: the lines of a.txt, as alternatives
10_red cat/b.jpg            no .txt: "red cat", the folder's name; shown 10 times per epoch
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from stillmotion.datasets.buckets import Size, nearest
from stillmotion.datasets.files import STILLS
from stillmotion.datasets.latent_cache import pixels, reason
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import LISTS, Item, find_items
from stillmotion.datasets.text import cleaned
from stillmotion.errors import DataError
from stillmotion.video.readers import open_frames

IMAGE_SUFFIXES = STILLS | {".gif"}
FOLDER = re.compile(r"(?:(\d+)_)?(.+)", re.DOTALL)
"""kohya's names of folders: times per epoch, and what they show"""


@dataclass(frozen=True)
class ImageItem:
    """An image on disk: its own size, the bucket it goes into, and how often an epoch shows it."""

    item: Item
    size: Size
    bucket: Size
    repeats: int = 1

    @property
    def enlarged(self) -> bool:
        """Whether it has fewer pixels than its bucket wants."""
        return self.size[0] < self.bucket[0] or self.size[1] < self.bucket[1]


def find_images(
    source: str | Path, report: Report, captions: Sequence[str] | None = None
) -> list[tuple[Item, int]]:
    """The images of a source with how often an epoch shows each; `captions` overrule all others.

    Raises DataError when the source cannot be used.
    """
    source = Path(source)
    if not source.is_dir() and not (source.is_file() and source.suffix.lower() in LISTS):
        what = "is no folder of images" if source.exists() else "does not exist"
        raise DataError(
            f"{source} {what}; give a folder with captions in .txt files beside the images, or a .jsonl "
            "file with file and caption."
        )
    found = []
    for item in find_items(source, report, None, IMAGE_SUFFIXES, lambda path: _folder(path)[1]):
        repeats = _folder(item.path)[0] if source.is_dir() else 1
        found.append((replace(item, captions=tuple(captions)) if captions else item, repeats))
    return found


def _folder(path: Path) -> tuple[int, str]:
    found = FOLDER.fullmatch(path.absolute().parent.name)
    times, name = found.groups() if found else ("", path.absolute().parent.name)
    repeats = int(times or 1)
    if repeats < 1:
        raise DataError(
            f"The folder {path.parent} says 0 times per epoch: name it 1_{name}, or move it away."
        )
    return repeats, " ".join(cleaned(name.replace("_", " ")).split())


def measured(
    found: Iterable[tuple[Item, int]], sizes: Sequence[Size], flip: bool, report: Report
) -> Iterator[ImageItem]:
    """The readable images with their buckets among `sizes`; the others go to the report."""
    for item, repeats in found:
        try:
            opened = open_frames(item.path)
        except DataError as error:
            report.skip(item.path, reason(error, item.path))
            continue
        size = (opened.height, opened.width)
        bucket = nearest(*size, sizes)
        variant = f"picture {bucket[0]}x{bucket[1]}{' flip' if flip else ''}"
        yield ImageItem(replace(item, variant=variant), size, bucket, repeats)


def read_image(item: Item, size: int, batch: int) -> tuple[float, Iterator[Tensor]]:
    """The first frame in the size of its bucket and, if flips are wanted, its mirror image (1, 3, h, w)."""
    _, bucket, *flip = item.variant.split()
    tall, wide = map(int, bucket.split("x"))
    image = open_frames(item.path).frames([0])
    views = [image, np.ascontiguousarray(image[:, :, ::-1])] if flip else [image]
    return 1.0, (pixels(view, (tall, wide)) for view in views)
