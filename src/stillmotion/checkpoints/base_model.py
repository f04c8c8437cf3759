"""Text-to-image models from wherever they are: a diffusers folder, a hub name, or one file (single_file.py).

Gives a plain diffusers pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from stillmotion.checkpoints.compatibility import require_kind
from stillmotion.checkpoints.file_kinds import job_of
from stillmotion.checkpoints.files import read_config, read_json, read_state
from stillmotion.checkpoints.modules import current_names, fill, make_module, without_notes
from stillmotion.checkpoints.scaled import dequantized
from stillmotion.checkpoints.single_file import (
    build_pipeline,
    config_folder,
    load_single_file,
    load_single_file_vae,
    load_vae,
)
from stillmotion.diffusion.schedule import PredictionType
from stillmotion.errors import Damaged, Mismatch, WrongKind

if TYPE_CHECKING:
    from torch import nn

    from stillmotion.diffusion.pipeline import Pipeline


USUAL_LATENTS, USUAL_BLOCKS = 64, (128, 256, 512, 512)
"""What diffusers takes where a UNet's config has no sample_size; the blocks of Stable Diffusion's VAE."""


def load_base(
    source: Source,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    *,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    prediction_type: PredictionType | None = None,
    ema: bool = False,
) -> Pipeline:
    """The text-to-image pipeline in a folder, a hub name, a bundled name ("emoji") or one checkpoint file.

    Args:
        source: where the model is.
        dtype: float32 if not given; one per part is possible: {"vae": ..., "default": ...}.
        vae: another VAE (file or folder) to use.
        config: for single files of unknown sizes: a folder of diffusers configs.
        prediction_type: for single files: overrules what the file tells of it.
        ema: for single files: take the averaged weights of the UNet where the file has both; where it has no
            others they are taken anyhow.

    Raises `WeightsError` or one of its kin in words: a wrong kind of file, a missing part, damage.
    """
    found = open_checkpoint(source)
    _check_kind(found)
    dtypes = dict(dtype) if isinstance(dtype, Mapping) else {"default": dtype or torch.float32}
    with without_notes():
        if found.is_pipeline:
            pipeline = _from_folder(found, dtypes, vae)
        else:
            config = Path(config) if config else None
            pipeline = load_single_file(
                found, dtypes, vae=vae, config=config, prediction_type=prediction_type, ema=ema
            )
    if vae is not None:
        _check_vae(pipeline, str(vae), found.source)
    return pipeline


def load_base_vae(source: Source, vae: Source | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The VAE with which a base decodes, without the rest of it: its own, or `vae` instead.

    Args:
        source: the base, as in `load_base`.
        vae: another VAE (file or folder).
        dtype: precision of the VAE.
    """
    found = open_checkpoint(source)
    _check_kind(found)
    path = found.path
    with without_notes():
        if not found.is_pipeline:
            return load_single_file_vae(found, vae, dtype)
        if vae is not None:
            return load_vae(vae, path, dtype)
        entry = read_json(path / "model_index.json").get("vae")
        kind = entry[-1] if isinstance(entry, list) and entry else "AutoencoderKL"
        return _folder_part(path, found.source, "vae", str(kind), dtype)


def native_size(source: Source) -> int:
    """Width and height in pixels that a base draws if nothing else is said. Reads configs, no weights.

    Raises `WeightsError` or one of its kin as `load_base` does.
    """
    found = open_checkpoint(source)
    _check_kind(found)
    with nullcontext(found.path) if found.is_pipeline else config_folder(found) as folder:
        unet, vae = read_config(folder / "unet"), read_config(folder / "vae")
    size = unet.get("sample_size") or USUAL_LATENTS
    side = min(size) if isinstance(size, (list, tuple)) else size
    return int(side) * 2 ** (len(vae.get("block_out_channels", USUAL_BLOCKS)) - 1)


def _check_vae(pipeline: Any, vae: str, base: str) -> None:
    made, taken = pipeline.vae.config.latent_channels, pipeline.unet.config.out_channels
    if made != taken:
        raise Mismatch(
            f"{vae} is a VAE of {made} latent channels, but {base} draws {taken}: use a VAE made for it."
        )


def _check_kind(found: Checkpoint) -> None:
    """A single file may be the only one in a folder."""
    if found.path.is_dir() and not found.is_pipeline:
        require_kind(found.info, "pipeline", "checkpoint")


def _from_folder(found: Checkpoint, dtypes: dict[str, torch.dtype], vae: str | Path | None) -> Any:
    """A diffusers folder: each part is its config and the weights beside it, read as any file is."""
    path, name = found.path, found.source
    unet = read_config(path / "unet")
    taken, drawn = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if not all(type(channels) is int for channels in (taken, drawn)):
        raise Damaged(f"{path}/unet/config.json has channels that are no numbers ({taken}, {drawn}).")
    if job := job_of(taken, drawn):
        raise WrongKind(
            f"{name} is for {job}: its UNet takes {taken} channels and draws {drawn}. Use the plain "
            "text-to-image model."
        )

    def weights(part: str, kind: str) -> Any:
        return _folder_part(path, name, part, kind, dtypes.get(part, dtypes["default"]))

    return build_pipeline(path, name, dtypes, weights, vae=vae)


def _folder_part(path: Path, name: str, part: str, kind: str, dtype: torch.dtype) -> Any:
    if not (path / part).is_dir():
        raise Damaged(f"The model folder {name} cannot be loaded: it has no folder {part}.")
    module = make_module(kind, path / part)
    state = dequantized(read_state(path / part), dtype, f"{name}/{part}")
    return fill(module, current_names(module, state), dtype, part, name)
