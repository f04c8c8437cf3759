"""Text-to-image models from wherever they are: a diffusers folder, a hub name, or one file (single_file.py).

Gives a plain diffusers pipeline; diffusers' own loaders do the reading. Knows no motion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.errors import Damaged, Mismatch, WrongKind
from stillmotion.weights.files import read_json, weight_files
from stillmotion.weights.fit import expect
from stillmotion.weights.hub import locate
from stillmotion.weights.identify import identify
from stillmotion.weights.prediction import Prediction
from stillmotion.weights.single_file import load_single_file, load_vae

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

FOLDER_CLASSES = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "LatentConsistencyModelPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
}
"""Class in a folder's model_index.json -> the pipeline it is loaded as (the same parts)."""


def load_base(
    source: str | Path,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    *,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    prediction: Prediction | None = None,
    ema: bool = False,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The text-to-image pipeline in a folder, a hub name, a bundled name ("emoji") or one checkpoint file.

    `dtype` is float32 if not given; one per part is possible: {"vae": ..., "default": ...}. `vae` is another
    VAE (file or folder) to use. For single files only: `config` is a folder of diffusers configs for unknown
    sizes, `prediction` overrules what the file tells of it, `ema` takes the averaged weights of the UNet
    where the file has both (they are taken anyhow where it has no others).
    Raises `WeightsError` or one of its kin in words: a wrong kind of file, a missing part, damage.
    """
    path = _located(source)
    dtypes = dict(dtype) if isinstance(dtype, Mapping) else {"default": dtype or torch.float32}
    if path.is_dir():
        pipeline = _from_folder(path, str(source), dtypes, vae)
    else:
        config = Path(config) if config else None
        pipeline = load_single_file(path, dtypes, vae=vae, config=config, prediction=prediction, ema=ema)
    if vae is not None:
        _check_vae(pipeline, str(vae), str(source))
    return pipeline


def _check_vae(pipeline: Any, vae: str, base: str) -> None:
    made, taken = pipeline.vae.config.latent_channels, pipeline.unet.config.out_channels
    if made != taken:
        raise Mismatch(
            f"{vae} is a VAE of {made} latent channels, but {base} draws {taken}: use a VAE made for it."
        )


def _located(source: str | Path) -> Path:
    """A pipeline folder or a single file (also the only one in a folder)."""
    path = locate(source)
    if not path.is_dir() or (path / "model_index.json").is_file():
        return path
    expect(identify(path), "pipeline", "checkpoint")
    return weight_files(path)[0]


def _from_folder(path: Path, name: str, dtypes: dict[str, torch.dtype], vae: str | Path | None) -> Any:
    import diffusers

    stored = read_json(path / "model_index.json").get("_class_name", "")
    if stored not in FOLDER_CLASSES:
        known = ", ".join(sorted(set(FOLDER_CLASSES.values())))
        raise WrongKind(f"{name} is a {stored or 'folder of no named class'}, not a base model ({known}).")
    loaded = getattr(diffusers, FOLDER_CLASSES[stored])
    options: dict[str, Any] = {"torch_dtype": dtypes, "local_files_only": True, "variant": _variant(path)}
    if loaded is diffusers.StableDiffusionPipeline:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipeline = loaded.from_pretrained(path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise Damaged(f"The model folder {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if vae is not None:
        with TemporaryDirectory() as config:
            pipeline.vae.save_config(Path(config) / "vae")
            pipeline.register_modules(vae=load_vae(vae, Path(config), dtypes.get("vae", dtypes["default"])))
    return pipeline


def _variant(path: Path) -> str | None:
    """The variant ("fp16") of a folder that has its UNet in no other form."""
    unet = path / "unet"
    plain = any((unet / f"diffusion_pytorch_model.{end}").is_file() for end in ("safetensors", "bin"))
    sharded = any(unet.glob("diffusion_pytorch_model.*.index.json"))
    half = any(unet.glob("diffusion_pytorch_model.fp16.*"))
    return "fp16" if half and not plain and not sharded else None
