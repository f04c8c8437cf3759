"""Images of the class for DreamBooth, drawn by the base where a folder has too few, and kept there.

OUTPUT/class-images/class-00007.png      drawn from the seed of the run plus 7, whoever draws it
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from PIL import Image

from stillmotion.atomic import durable, sweep
from stillmotion.datasets.images import IMAGE_SUFFIXES
from stillmotion.datasets.sources import files_in
from stillmotion.training.config.images import DreamBoothConfig
from stillmotion.training.denoiser import Denoiser
from stillmotion.training.engine.progress import Progress
from stillmotion.training.samples import sample_clip


def class_images(
    config: DreamBoothConfig, denoiser: Denoiser, accelerator: Accelerator, log: Callable[[str], None]
) -> Path:
    """The folder, with at least as many images as the config wants; each process draws its part."""
    folder = config.class_images or config.output / "class-images"
    wanted = missing(folder, config.num_class_images)
    if accelerator.is_main_process:
        sweep(folder)
    accelerator.wait_for_everyone()  # all have counted before anybody draws
    if not wanted:
        return folder
    log(f"{folder} has {config.num_class_images - len(wanted)} images: the base draws {len(wanted)} more.")
    mine = wanted[accelerator.process_index :: accelerator.num_processes]
    progress = Progress(log, "class", "images", len(mine))
    for done, path in enumerate(mine, 1):
        _draw(config, denoiser, path)
        progress(done)
    accelerator.wait_for_everyone()
    log(f"{len(wanted)} images of the class drawn in {progress.took}.")
    return folder


def missing(folder: Path, count: int) -> list[Path]:
    """The files to draw, so that the folder has `count` images; what is there stays."""
    there = files_in(folder, IMAGE_SUFFIXES) if folder.is_dir() else []
    names = {path.name for path in there}
    free = (folder / _name(number) for number in range(count) if _name(number) not in names)
    return list(free)[: max(0, count - len(there))]


def _name(number: int) -> str:
    return f"class-{number:05d}.png"


def _draw(config: DreamBoothConfig, denoiser: Denoiser, path: Path) -> None:
    number = int(path.stem.removeprefix("class-"))
    (image,) = sample_clip(denoiser, config.class_prompt or "", 1, config.seed + number)
    with durable(path) as unfinished:
        Image.fromarray(image).save(unfinished, format="PNG")
