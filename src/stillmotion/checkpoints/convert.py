"""Files of models from one layout to another: motion modules, LoRAs, and text-to-image models.

    convert("v3_sd15_mm.ckpt", "motion/")                      a diffusers MotionAdapter
    convert("style.safetensors", "peft.safetensors", "peft")   a LoRA in other names
    convert("toonyou.safetensors", "toonyou/")                 a checkpoint as a diffusers folder, and back

Nothing but names and precision changes: there and back again gives the same numbers. Trains nothing, merges
nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.atomic import check_free, replacing
from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.checkpoint import Source, open_checkpoint
from stillmotion.checkpoints.compatibility import require_kind
from stillmotion.checkpoints.files import Header, read_header, read_json
from stillmotion.checkpoints.formats import MODEL_FOLDER
from stillmotion.checkpoints.ldm.configs import without_paths
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import OutputError, WrongKind
from stillmotion.request.aliases import layout_of_kind

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline

BASES = ("checkpoint", "pipeline")
LORAS = ("lora", "motion-lora", "domain-adapter")
LAYOUTS = {
    **dict.fromkeys(BASES, ("ldm", "diffusers")),
    "motion": ("animatediff", "diffusers", "hotshot"),
    **dict.fromkeys(LORAS, ("kohya", "peft", "diffusers", "animatediff")),
}
"""Kinds of files that can be converted, and the layouts that each has."""

LORA_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA in a folder."""

OTHER_FILES = re.compile(
    r"\.(ckpt|pt|pt2|pth|bin|pkl|pickle|gguf|ggml|onnx|engine|trt|plan|h5|hdf5|keras|tflite|pb|msgpack|np[yz]"
    r"|mlmodelc?|mlpackage|xml|zip|tar|gz|7z|rar|json|ya?ml|toml|txt|sft|safetensors?.*|gif|png|webp|mp4)",
    re.IGNORECASE,
)
"""Extensions of files that are not written here."""

FLOATS = ("float32", "float16", "bfloat16")


def convert(
    source: Source,
    target: str | Path,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    ema: bool = False,
) -> Path:
    """Writes the model in `source` to `target` in another layout, and returns where.

    Args:
        source: a file, folder, hub name or the name of an installed model.
        target: a file ending in .safetensors, or a folder.
        layout: one that this kind has. By default diffusers for a folder; for a file ldm (checkpoints),
            animatediff (motion) or kohya (style LoRAs).
        dtype: of the weights written; the file's own by default.
        overwrite: whether a target that is there is replaced.
        ema: take the averaged weights of a checkpoint that has both.

    WrongKind for what has no such layout, OutputError where the target cannot be written.
    """
    opened, target = open_checkpoint(source), Path(target)
    found = opened.info
    if found.known and found.kind not in LAYOUTS:
        raise WrongKind(
            f"{found.name} is {found.title}; only motion modules, LoRAs and whole text-to-image models have "
            "several layouts to convert between."
        )
    require_kind(found, *LAYOUTS)
    layout = layout_of_kind(layout, found.kind)
    check_target(target, overwrite)
    _check_layout(found.kind, found.name, layout, target)
    if found.kind in LORAS:
        return _write_lora(Lora.load(opened), target, layout, dtype, overwrite)
    return save_model(load_model(opened, dtype, ema), target, layout, overwrite)


def load_model(source: Source, dtype: torch.dtype | None = None, ema: bool = False) -> MotionModel | Pipeline:
    """A motion module or a text-to-image model, in its own precision if `dtype` is not given."""
    opened = open_checkpoint(source)
    require_kind(opened.info, *BASES, "motion")
    if opened.info.kind == "motion":
        return MotionModel.load(opened, dtype=dtype)
    pipeline = load_base(opened, dtype or stored_dtypes(opened), ema=ema)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_model(
    model: MotionModel | Pipeline, target: Path, layout: str | None = None, overwrite: bool = False
) -> Path:
    """Writes a motion module or a text-to-image model as a file or a folder, whole or not at all."""
    check_target(target, overwrite)
    if target.suffix == ".safetensors":
        if isinstance(model, MotionModel):
            return model.save(target, layout)  # type: ignore[arg-type]  # save checks it
        return save_single_file(model, target)
    with replacing(target, overwrite, MODEL_FOLDER) as unfinished:
        if isinstance(model, MotionModel):
            model.save(unfinished)
        else:
            _write_folder(model, unfinished)
    return target


def check_target(target: Path, overwrite: bool) -> None:
    """OutputError if a model cannot be written there: a .safetensors, else a folder.

    A name with the extension of another kind of file is meant as a file, and never becomes a folder.
    """
    if target.suffix != ".safetensors" and OTHER_FILES.fullmatch(target.suffix):
        raise OutputError(f"{target} cannot be written: models are saved as .safetensors or as a folder.")
    check_free(target, overwrite, None if target.suffix == ".safetensors" else MODEL_FOLDER)


def stored_dtypes(source: Source) -> dict[str, torch.dtype]:
    """The precision of each part of a model as `load_base` takes it; float32 where a file has several."""
    opened = open_checkpoint(source)
    if not opened.is_pipeline:
        return {"default": _dtype_of(opened.header)}
    path = opened.path
    parts = [name for name in read_json(path / "model_index.json") if (path / name / "config.json").is_file()]
    return {"default": torch.float32, **{name: _dtype_of(read_header(path / name)) for name in parts}}


def _dtype_of(header: Header) -> torch.dtype:
    kinds = [kind for kind in FLOATS if kind in header.dtypes]
    return getattr(torch, kinds[0]) if len(kinds) == 1 else torch.float32


def _check_layout(kind: str, name: str, layout: str | None, target: Path) -> None:
    known = LAYOUTS[kind]
    if layout is not None and layout not in known:
        raise WrongKind(f"{name} has no {layout} layout: for its kind of file there are {', '.join(known)}.")
    single = target.suffix == ".safetensors"
    if not single and layout not in (None, "diffusers"):
        raise OutputError(f"{target} is a folder, diffusers' layout: for {layout} name a .safetensors.")
    if single and kind in BASES and layout == "diffusers":
        raise OutputError(f"{target} is one file, but a whole model of diffusers is a folder: name one.")


def _write_lora(lora: Lora, target: Path, layout: Any, dtype: torch.dtype | None, overwrite: bool) -> Path:
    if target.suffix == ".safetensors":
        return lora.save(target, layout, dtype)
    with replacing(target, overwrite, MODEL_FOLDER) as unfinished:
        lora.save(unfinished / LORA_NAME, "diffusers", dtype)
    return target


def _write_folder(pipeline: Pipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder)
    for config in (*folder.glob("*.json"), *folder.glob("*/*config.json")):
        config.write_text(without_paths(config.read_text(encoding="utf-8")), encoding="utf-8")
