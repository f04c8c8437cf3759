"""Text-to-image checkpoints in one file of the LDM layout (.safetensors, .ckpt), loaded without a network.

A single file has no configs and no vocabulary in it, and diffusers would ask the hub for them. The configs of
each family and the CLIP vocabulary are beside this module; files that stillmotion wrote
carry theirs in the header. The names of VAE and text encoders are converted by diffusers' own tables, those
of the UNet by ours (ldm/keys.py), which know averaged weights (EMA) and any number of layers too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from stillmotion.checkpoints.compatibility import require_kind
from stillmotion.checkpoints.file_kinds import BASES, FileInfo
from stillmotion.checkpoints.files import Header, read_json, weight_files
from stillmotion.checkpoints.kind_rules import missing_parts
from stillmotion.checkpoints.ldm.configs import CONFIGS_KEY, unpacked
from stillmotion.checkpoints.ldm.keys import (
    EMA,
    TEXT,
    TEXT_OPEN,
    TEXT_XL,
    TEXT_XL_2,
    UNET,
    VAE,
    ema_name,
    unet_names,
)
from stillmotion.checkpoints.modules import (
    MISFITS,
    check_settings,
    current_names,
    fill,
    make_module,
    why,
)
from stillmotion.checkpoints.prediction import detect_prediction
from stillmotion.checkpoints.scaled import dequantized
from stillmotion.checkpoints.tokenizer import check_tokens, clip_tokenizer
from stillmotion.diffusion.schedule import NoiseSchedule, PredictionType
from stillmotion.errors import Damaged, RequestError, UnknownFile, WrongKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillmotion.diffusion.pipeline import Pipeline

CONFIGS = Path(__file__).with_name("configs")

PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "LatentConsistencyModelPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
}
"""Class in model_index.json -> the pipeline it is loaded as (the same parts)."""

NOT_LOADED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
"""Parts of a folder that text-to-image does without."""

TEXT_PREFIXES = {"text_encoder": (TEXT, TEXT_OPEN, TEXT_XL), "text_encoder_2": (TEXT_XL_2,)}
"""Where text encoders are in a checkpoint; those that end in `model.` have the names of OpenCLIP."""


def load_single_file(
    opened: Checkpoint,
    dtypes: Mapping[str, torch.dtype],
    *,
    vae: str | Path | None = None,
    config: Path | None = None,
    prediction_type: PredictionType | None = None,
    ema: bool = False,
) -> Pipeline:
    """The pipeline in a checkpoint of LDM layout (SD 1.x, 2.x, XL); arguments as in `load_base`."""
    header, found = opened.header, opened.info
    _check_base(found, header, vae is not None)
    path = weight_files(opened.path)[0]
    detected = detect_prediction(header, path, found.base)
    if config is None and CONFIGS_KEY not in header.metadata:
        prediction_type = prediction_type or detected.prediction_type
    state = _chosen(_with_text_model(opened.state()), ema, path.name)
    scheduler: dict[str, Any] = {"prediction_type": prediction_type} if prediction_type else {}
    if detected.zero_snr:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with _configs(config, header, found, prediction_type) as folder:

        def weights(part: str, kind: str) -> nn.Module:
            return _converted(kind, state, path.name, folder, part, dtypes.get(part, dtypes["default"]))

        return build_pipeline(folder, path.name, dtypes, weights, vae=vae, scheduler=scheduler)


def load_single_file_vae(opened: Checkpoint, vae: Source | None, dtype: torch.dtype) -> nn.Module:
    """Only the VAE of a checkpoint of LDM layout, or `vae` instead of it."""
    header, found = opened.header, opened.info
    _check_base(found, header, vae is not None)
    with _configs(None, header, found, None) as folder:
        if vae is not None:
            return load_vae(vae, folder, dtype)
        return _converted("AutoencoderKL", opened.state(), opened.name, folder, "vae", dtype)


def config_folder(opened: Checkpoint) -> AbstractContextManager[Path]:
    """The configs of a checkpoint of LDM layout, as a diffusers folder has them, while the block runs."""
    header, found = opened.header, opened.info
    _check_base(found, header, other_vae=True)
    detected = detect_prediction(header, weight_files(opened.path)[0], found.base)
    return _configs(None, header, found, detected.prediction_type)


def _configs(
    config: Path | None, header: Header, found: FileInfo, prediction_type: PredictionType | None
) -> AbstractContextManager[Path]:
    """The folder of configs: the one given, the one in the header, or that of the family."""
    if config is not None:
        return nullcontext(config)
    if CONFIGS_KEY in header.metadata:
        return unpacked(header.metadata[CONFIGS_KEY], header.name)
    return nullcontext(_config_of(found, prediction_type))


def build_pipeline(
    config: Path,
    source: str,
    dtypes: Mapping[str, torch.dtype],
    weights: Callable[[str, str], nn.Module],
    *,
    vae: str | Path | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Pipeline:
    """A pipeline of the parts that model_index.json in the folder `config` names.

    Args:
        config: folder with the configs of all parts, as diffusers saves it.
        source: what to call the model in errors.
        dtypes: dtype by part, "default" for the others.
        weights: (part, class) -> the module with its weights.
        vae: another VAE (file or folder) to use.
        scheduler: settings that win over those of the folder.
    """
    import diffusers

    index = read_json(config / "model_index.json")
    stored = index.get("_class_name")
    if not isinstance(stored, str) or stored not in PIPELINES:
        known = ", ".join(sorted(set(PIPELINES.values())))
        raise WrongKind(f"{source} is a {stored or 'folder of no named class'}, not a base model ({known}).")
    kind = getattr(diffusers, PIPELINES[stored])
    parts: dict[str, Any] = {}
    for part, taken in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        entry = NOT_LOADED.get(part, index.get(part, taken.default))
        if entry is taken.empty:
            raise Damaged(f"model_index.json of {source} names no {part}.")
        parts[part] = entry
        if not isinstance(entry, (list, tuple)):
            if entry is not None and not isinstance(taken.default, (bool, type(None))):
                raise Damaged(f"model_index.json of {source} has {part} = {entry!r:.60}, which is no part.")
            continue
        name = entry[-1] if entry else None
        if name is None:
            parts[part] = None
        elif part == "scheduler":
            parts[part] = _scheduler(str(name), config, scheduler or {})
        elif part.startswith("tokenizer"):
            parts[part] = clip_tokenizer(config / part)
        elif part == "vae" and vae is not None:
            parts[part] = load_vae(vae, config, dtypes.get(part, dtypes["default"]))
        else:
            parts[part] = weights(part, str(name))
    pipeline = kind(**parts)
    check_tokens(pipeline, source)
    pipeline.register_to_config(_name_or_path=source)  # what errors about a LoRA call it
    return pipeline


def load_vae(source: Source, config: Path, dtype: torch.dtype) -> nn.Module:
    """An AutoencoderKL from one file (LDM or diffusers names) or a folder.

    A folder has its own config; a file is built after `vae/config.json` in the folder `config`.
    """
    opened = open_checkpoint(source)
    require_kind(opened.info, "vae")
    path = opened.path
    folder = path.resolve() if (path / "config.json").is_file() else config / "vae"
    return _converted("AutoencoderKL", opened.state(), path.name, folder.parent, folder.name, dtype)


def _check_base(found: FileInfo, header: Header, other_vae: bool) -> None:
    require_kind(found, "checkpoint")
    if found.family:
        raise WrongKind(
            f"{found.name} is {found.title}: it takes an image besides the noise. Use the plain checkpoint."
        )
    missing = [part for part in missing_parts(header) if not (part == "VAE" and other_vae)]
    if missing:
        only_vae = missing == ["VAE"]
        way_out = "Give a VAE beside it with `vae=FILE`" if only_vae else "Use the complete checkpoint"
        raise Damaged(f"{found.name} has no {' and no '.join(missing)}. {way_out}.")


def _chosen(state: dict[str, Tensor], ema: bool, name: str) -> dict[str, Tensor]:
    """The plain weights of the UNet or their averages: the plain ones unless told so or there are none."""
    averaged = any(key.startswith(f"{EMA}diffusion_model") for key in state)
    if ema and not averaged:
        raise Damaged(f"{name} has no averaged weights (EMA): load it without `ema=True`.")
    plain = any(key.startswith(UNET) for key in state) and not ema
    return {key: tensor for key, tensor in state.items() if not key.startswith(EMA if plain else UNET)}


def _config_of(found: FileInfo, prediction_type: PredictionType | None) -> Path:
    names = {"sd15": "sd15", "sd2": "sd21-v" if prediction_type == "v_prediction" else "sd21", "sdxl": "sdxl"}
    if found.base not in names:
        raise UnknownFile(
            f"{found.name} is a checkpoint for {BASES[found.base or 'custom']}; known sizes are Stable "
            "Diffusion 1.x, 2.x and XL. For others give a folder of diffusers configs (config=...)."
        )
    return CONFIGS / names[found.base]


def _with_text_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old merging tools saved `transformer.embeddings...` for `transformer.text_model.embeddings...`."""
    short = tuple(TEXT + part for part in ("embeddings.", "encoder.", "final_layer_norm."))
    return {
        f"{TEXT}text_model.{name.removeprefix(TEXT)}" if name.startswith(short) else name: tensor
        for name, tensor in state.items()
    }


def _scheduler(kind: str, config: Path, overruled: Mapping[str, Any]) -> Any:
    import diffusers

    settings = read_json(config / "scheduler" / "scheduler_config.json")
    if not kind.endswith("Scheduler") or not hasattr(diffusers, kind):
        raise Damaged(
            f"{config.name}/model_index.json names the scheduler {kind!r}, which diffusers has not."
        )
    try:
        check_settings(settings)
        NoiseSchedule.from_config(settings)
        return getattr(diffusers, kind).from_config({**settings, **overruled})
    except (*MISFITS, RequestError) as error:
        place = f"{config.name}/scheduler/scheduler_config.json"
        raise Damaged(f"{place} is no {kind} ({why(error)}).") from error


def _converted(
    kind: str, state: Mapping[str, Tensor], name: str, config: Path, part: str, dtype: torch.dtype
) -> nn.Module:
    """One part of a single file as a module of the class `kind`; `Damaged` if a tensor is missing or off."""
    module = make_module(kind, config / part)
    weights = _renamed(module, dequantized(_of_part(state, part), dtype, name), part)
    if not weights:
        raise Damaged(f"{name} has no {part.replace('_', ' ')}. Use the complete checkpoint.")
    return fill(module, weights, dtype, part, name)


def _of_part(state: Mapping[str, Tensor], part: str) -> Mapping[str, Tensor]:
    """The tensors of one part of a checkpoint; all where none is marked as its own, as in a VAE alone."""
    prefixes = {"unet": (UNET, EMA), "vae": (VAE, "vae."), **TEXT_PREFIXES}.get(part, ())
    return {key: tensor for key, tensor in state.items() if key.startswith(prefixes)} or state


def _renamed(module: nn.Module, state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part by the names of its module."""
    from diffusers.loaders import single_file_utils as tables

    direct = current_names(module, state)
    if module.state_dict().keys() <= direct.keys():
        return direct
    if part == "unet":
        places = ((ours, (name, ema_name(name))) for ours, name in unet_names(module.state_dict()).items())
        return {ours: state[name] for ours, names in places for name in names if name in state}
    if part == "vae":
        return tables.convert_ldm_vae_checkpoint(dict(state), module.config)
    prefix = next((p for p in TEXT_PREFIXES[part] if any(key.startswith(p) for key in state)), "")
    if prefix.endswith(".model."):
        found = tables.convert_open_clip_checkpoint(module, state, prefix=prefix)
    else:
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return current_names(module, found)
