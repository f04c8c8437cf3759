"""Text-to-image pipelines written as one .safetensors in the LDM layout: the inverse of single_file.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from stillmotion.atomic import replacing
from stillmotion.checkpoints.ldm import keys
from stillmotion.checkpoints.ldm.configs import CONFIGS_KEY, packed
from stillmotion.errors import OutputError, WrongKind

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from stillmotion.diffusion.pipeline import Pipeline

_PARTS = {"unet", "vae", "text_encoder"}


def save_single_file(pipeline: Pipeline, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes a Stable Diffusion pipeline (1.x, 2.x, XL or any sizes) as one .safetensors, and returns where.

    Other programs read it as any checkpoint; `load_base` finds its configs in the header.

    Args:
        pipeline: a diffusers pipeline.
        path: a file ending in .safetensors; what is there is replaced whole.
        dtype: of the weights written; that of the parts by default.

    OutputError if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OutputError(
            f"One file of a model is written as .safetensors, not as {path.suffix or 'a folder'}."
        )
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in ldm_state(pipeline).items()
    }
    prediction_type = pipeline.scheduler.config.get("prediction_type", "epsilon")
    metadata = {
        "format": "pt",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        CONFIGS_KEY: packed(pipeline),
    }
    with replacing(path, overwrite=True) as unfinished:
        save_file(state, unfinished, metadata=metadata)
    return path


def ldm_state(pipeline: Pipeline) -> dict[str, Tensor]:
    """All weights of a pipeline by their names in one file."""
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    if not parts.keys() >= _PARTS:
        raise WrongKind(
            f"A {type(pipeline).__name__} has no {', '.join(sorted(_PARTS - parts.keys()))}: only Stable "
            "Diffusion 1.x, 2.x and XL have a form in one file."
        )
    unet = parts["unet"].state_dict()
    return {
        **{name: unet[ours] for ours, name in keys.unet_names(unet).items()},
        **keys.vae_state(parts["vae"].state_dict()),
        **_text_state(parts["text_encoder"], parts.get("text_encoder_2")),
    }


def _text_state(first: Any, second: nn.Module | None) -> dict[str, Tensor]:
    """SD 1.x keeps CLIP under its own names, SD 2.x (gelu) under OpenCLIP's, XL one of each."""
    if second is not None:
        written = keys.clip_state(first.state_dict(), keys.TEXT_XL)
        return written | keys.open_clip_state(second.state_dict(), keys.TEXT_XL_2)
    if first.config.hidden_act == "gelu":
        return keys.open_clip_state(first.state_dict())
    return keys.clip_state(first.state_dict())
