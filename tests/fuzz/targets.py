"""Everything that reads what others wrote: one row a reader, each with the seeds it takes."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiny import tiny_motion, tiny_pipeline

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.convert import convert
from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.checkpoints.textual_inversion import load_textual_inversions
from stillmotion.cli import run
from stillmotion.datasets.images import find_images, measured
from stillmotion.datasets.latent_cache import LatentCache
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item, find_items
from stillmotion.request import Request
from stillmotion.request.layer_weights import LayerWeights
from stillmotion.request.model_card import ModelCard
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.latents import Latents
from stillmotion.training import KINDS, load_config
from stillmotion.training.engine import checkpoint
from stillmotion.training.engine.logger import read_losses
from stillmotion.video import Clip
from stillmotion.video.metadata import read_tag

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True)
class Target:
    """A reader of the seeds in one folder: `read(root, changed file)`; `weight` says how often it is tried.

    `takes` says which files are changed; None: all.
    """

    folder: str
    read: Callable[[Path, Path], object]
    takes: Callable[[Path], bool] | None = None
    weight: int = 2


def _top(root: Path, file: Path) -> Path:
    """The file itself, or the folder in `root` that it lies in."""
    return root / file.relative_to(root).parts[0]


def _cli(*args: object) -> None:
    """A command line; RuntimeError for an exit code or message that no fault of a file may have."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(arg) for arg in args])
    said = out.getvalue() + err.getvalue()
    if code not in (0, 2) or "Unexpected " in said:
        raise RuntimeError(f"exit {code}: {said[-300:]}")
    if any(ord(char) < 32 and char not in "\n\t" for char in said):
        raise RuntimeError(f"control characters are printed: {said[-300:]!r}")


def _attach_lora(root: Path, file: Path) -> None:
    with Lora.load(_top(root, file)).attach(_pipeline(), motion=_motion(), weight=0.5):
        pass


@functools.cache
def _pipeline() -> Any:
    return tiny_pipeline()


@functools.cache
def _motion() -> Any:
    return tiny_motion()


def _embed(root: Path, file: Path) -> None:
    embedding = read_embedding(file)
    load_textual_inversions(tiny_pipeline(), [embedding])


def _single(root: Path, file: Path) -> None:
    if file.name == "vae.safetensors":
        load_base(root / "own.safetensors", vae=file)
    elif "configs" in file.parts:
        load_base(root / "model.ckpt", config=root / "configs")
    else:
        load_base(file, config=None if file.name == "own.safetensors" else root / "configs")


def _convert(root: Path, file: Path) -> None:
    convert(_top(root, file), root / "out.safetensors", "kohya", overwrite=True)


def _card(root: Path, file: Path) -> None:
    card = ModelCard.read(root / "base")
    if card.concepts:
        card.concepts.hint("a rocket in 3d style")


def _request(root: Path, file: Path) -> None:
    text = file.read_bytes().decode("utf-8", "replace") if file.is_file() else ""
    request = Request.from_json(text)
    assert Request.from_json(request.to_json()) == request
    request.filled({"frames": 4, "width": 16, "height": 16, "num_inference_steps": 2, "fps": 8.0,
                    "guidance_scale": 3.0, "scheduler": "ddim", "noise_alpha": 0.0})  # fmt: skip


def _fields(file: Path) -> dict[str, Any]:
    """Named values of a JSON file, however odd; none if it is no such file."""
    with contextlib.suppress(ValueError, RecursionError, OSError):
        fields = json.loads(file.read_bytes()) if file.is_file() else None
        return fields if isinstance(fields, dict) else {}
    return {}


def _flat(root: Path, file: Path) -> None:
    Request.parse(**{name: value for name, value in _fields(file).items() if name != "version"})


def _flags(root: Path, file: Path) -> None:
    """Fields as flags of `animate`, whose base is nowhere: it ends in a sentence before anything is drawn."""
    fields = _fields(file)
    names = {flag.field: flag.names for flag in Request.flags()}
    args = [str(fields.pop("prompt", "x"))]
    for name, value in fields.items():
        for each in value.items() if isinstance(value, dict) else [(value,)]:
            said = "=".join(part if isinstance(part, str) else json.dumps(part) for part in each)
            args += [names.get(name, (f"--{name[:50]}",))[0] if names.get(name) else f"--{name[:50]}", said]
    args = [arg.encode("utf-8", "replace").decode().replace("\0", "0") for arg in args]
    _cli("animate", *args, "--base", root / "nowhere", "-o", root / "out.gif")


def _weights_text(root: Path, file: Path) -> None:
    weights = LayerWeights.of(file.read_text("utf-8", "replace") if file.is_file() else "")
    weights.for_layer("unet", "down_blocks.0")
    weights.for_frames(4)


def _config(root: Path, file: Path) -> None:
    load_config(KINDS[file.stem].config, file)


def _clip(root: Path, file: Path) -> None:
    clip = Clip.load(_top(root, file))
    assert clip.frames.nbytes < 2**28


def _captions(root: Path, file: Path) -> None:
    if file.name.startswith(("list", "webvid")):
        items = find_items(file, Report(), suffixes=frozenset({".png", ".jpg"}))
    else:
        items = [item for item, _ in find_images(root, Report())]
        list(measured([(item, 1) for item in items], [(8, 8)], False, Report()))
    assert all(isinstance(caption, str) for item in items for caption in item.captions)


def _run_folder(root: Path, file: Path) -> None:
    read_losses(root / "loss.csv")
    saved = checkpoint.read_newest(root)
    if saved is not None:
        checkpoint.changes(saved, {"learning_rate": 2e-4, "base": "emoji"})
        checkpoint.check_shapes(saved, {"a.weight": (2, 3), "b": ()})


def _cache(root: Path, file: Path) -> None:
    """A cache file in the place where it would be looked for."""
    item = Item(root / "x.png", ("x",))
    item.path.write_bytes(b"x")
    cache = LatentCache(root / "cache", lambda pixels: pixels, "vae", 16)
    place = cache._file(item)
    place.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        place.write_bytes(file.read_bytes())
    if (found := cache.ready(item)) is not None:
        found.latents([0])


TARGETS: dict[str, Target] = {
    "base folder": Target("base", lambda root, file: load_base(root / "base"), weight=4),
    "animator": Target(
        "base",
        lambda root, file: Animator.load(str(root / "base"), "none"),
        lambda file: file.suffix == ".json",
    ),
    "model card": Target("base", _card, lambda file: file.name in ("stillmotion.json", "concepts.json")),
    "single file": Target("single", _single, weight=3),
    "motion": Target("motion", lambda root, file: MotionModel.load(_top(root, file)), weight=4),
    "lora": Target("lora", _attach_lora, weight=5),
    "convert": Target("lora", _convert),
    "embedding": Target("embedding", _embed, weight=3),
    **{
        f"identify {folder}": Target(
            folder, lambda root, file: json.dumps(asdict(identify(_top(root, file))))
        )
        for folder in ("motion", "lora", "embedding", "identify", "base")
    },
    "inspect": Target("lora", lambda root, file: _cli("inspect", file), lambda file: file.suffix in WEIGHTS),
    "request": Target("request", _request, weight=3),
    "request, flat": Target("request", _flat),
    "flags": Target("request", _flags),
    "layer weights": Target("weights", _weights_text),
    "training config": Target("config", _config, weight=3),
    "clip": Target("clip", _clip, weight=5),
    "info": Target("clip", lambda root, file: _cli("info", _top(root, file))),
    "tag": Target("tag", lambda root, file: read_tag(file.read_bytes() if file.is_file() else None)),
    "latents": Target("latents", lambda root, file: Latents.load(file)),
    "latent cache": Target("latents", _cache),
    "captions": Target("data", _captions, weight=4),
    "run folder": Target("run", _run_folder, weight=3),
}
