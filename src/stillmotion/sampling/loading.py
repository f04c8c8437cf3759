"""Names, files and folders become the parts of an Animator: pipeline, motion, LoRAs and their cards.

Everything that can be refused without loading gigabytes is refused first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillmotion.checkpoints.base_model import load_base, load_base_vae
from stillmotion.checkpoints.checkpoint import Checkpoint, open_checkpoint
from stillmotion.checkpoints.compatibility import check_compatible
from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.hub import INSIDE
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.checkpoints.textual_inversion import load_textual_inversions
from stillmotion.errors import Mismatch, RequestError, WrongKind
from stillmotion.request.installed_models import DEFAULT_MODEL, bundled_folder
from stillmotion.request.layer_weights import LayerWeights
from stillmotion.request.model_card import ModelCard
from stillmotion.request.model_files import ModelFile, model_names, records_of
from stillmotion.request.sections import DTYPES, Models
from stillmotion.runtime.precision import as_device, best_device, best_dtype
from stillmotion.runtime.startup import collector_paused
from stillmotion.sampling.preflight import check_places, motion_place

if TYPE_CHECKING:
    from torch import nn

    from stillmotion.diffusion.pipeline import Pipeline
    from stillmotion.request import Request

LoraWeights = Mapping[str, LayerWeights | float | str | Mapping[str, float]]
"""Files and how strongly each acts."""

ARGUMENTS = ("base", "motion", "loras", "dtype", "device", "motion_loras", "vae", "embeddings")
"""What `Animator.load` takes."""

RENAMED = {
    "torch_dtype": "it is called dtype here",
    "variant": "the form of the weights is found by itself",
    "use_safetensors": "safetensors are taken where there are any, and pickles never run code",
    "safety_checker": "it is not used",
    "device_map": "it is called device here",
    "scheduler": "it belongs to a clip, as in animate(prompt, scheduler='ddim')",
    "adapter": "it is called motion here",
    "motion_adapter": "it is called motion here",
}
"""What users of diffusers may try."""


@dataclass(frozen=True)
class LoadedModels:
    """What an Animator is made of; `models` are the fields of a Request that name it all again.

    `notes` are what the user should know of it, such as a LoRA that goes elsewhere than its flag says;
    `words` are those that textual inversions have added; `files` are records of the files that were named.
    """

    pipeline: Pipeline
    motion: MotionModel | None
    card: ModelCard
    models: Models
    loras: dict[Lora, LayerWeights]
    notes: tuple[str, ...]
    words: tuple[str, ...]
    files: tuple[ModelFile, ...] = ()


@collector_paused()
def load_models(
    base: str | Path | None = None,
    motion: str | Path | None = None,
    loras: LoraWeights | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    motion_loras: LoraWeights | None = None,
    vae: str | Path | None = None,
    embeddings: Mapping[str, str] | None = None,
    **others: Any,
) -> LoadedModels:
    """Loads base, motion, LoRAs and words and checks that they fit, as `Animator.load` says it."""
    _refuse(others)
    device = as_device(device) if device is not None else best_device()
    dtype = as_dtype(dtype) if dtype is not None else best_dtype(device)
    opened = open_checkpoint(base if base is not None else bundled_folder())
    place = opened.path
    motion_folder = motion_place(motion, base or DEFAULT_MODEL, place)
    if motion is not None and motion_folder is not None:
        check_places(opened, open_checkpoint(motion))
    net = _load_motion(motion_folder) if motion_folder else None
    given = {"loras": layer_weights_of(loras), "motion_loras": layer_weights_of(motion_loras)}
    adapters = _read_loras(given, opened)
    inversions = [read_embedding(file, word) for file, word in (embeddings or {}).items()]
    pipeline = load_base(opened, {"vae": torch.float32, "default": dtype}, vae=vae)
    pipeline.set_progress_bar_config(disable=True)
    if net is not None:
        check_compatible(
            net.spec, pipeline.unet.config, str(motion or motion_folder), str(base or DEFAULT_MODEL)
        )
        net.to(device, dtype)
    words = load_textual_inversions(pipeline, inversions)
    brought, word_notes = _bundled_words(pipeline, [lora for _, lora, _ in adapters])
    fitted = _fitting(adapters, pipeline, net)
    card = _merged(ModelCard.read(place), _motion_card(motion_folder) if motion_folder else ModelCard())
    models = Models.parse(
        **{
            "base": str(base) if base is not None else DEFAULT_MODEL,
            "motion": str(motion) if motion is not None else None,
            **{flag: {lora: weight.spec for lora, weight in each.items()} for flag, each in given.items()},
            "vae": str(vae) if vae is not None else None,
            "embeddings": {str(file): word for file, word in (embeddings or {}).items()},
            "dtype": str(dtype).removeprefix("torch."),
        }
    )
    notes = tuple(note for flag, lora, _ in adapters if (note := _note(flag, lora)))
    notes += tuple(note for _, lora, _ in adapters for note in lora.notes) + word_notes
    files = records_of(name for _, name in model_names(models))
    return LoadedModels(pipeline.to(device), net, card, models, fitted, notes, words + brought, files)


def load_decoder(request: Request, device: str | torch.device | None = None) -> nn.Module:
    """The VAE that decodes the latents of a request, in float32; nothing else of its models is loaded."""
    place = best_device() if device is None else as_device(device)
    base = bundled_folder() if request.base is None else request.base
    return load_base_vae(base, request.vae).to(place)


def layer_weights_of(loras: LoraWeights | None) -> dict[str, LayerWeights]:
    """Names and what their weights mean; RequestError for a weight that is none."""
    return {str(lora): LayerWeights.of(weight) for lora, weight in (loras or {}).items()}


def move_models(
    pipeline: Pipeline, motion: nn.Module | None, place: str | int | torch.device | torch.dtype
) -> torch.dtype | None:
    """Moves all to a device, or to a precision (all but the VAE), which is returned.

    RequestError for a device that this machine does not have.
    """
    dtype = None
    if isinstance(place, torch.dtype) or (isinstance(place, str) and place in (*DTYPES, *DTYPES.values())):
        dtype = as_dtype(place)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(torch.float32 if part is pipeline.vae else dtype)
    else:
        pipeline.to(as_device(place))
    if motion is not None:
        motion.to(pipeline.unet.device, dtype)
    return dtype


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """float32, bfloat16, float16 or their short names (fp32, bf16, fp16) as a torch dtype."""
    given = str(name).removeprefix("torch.") if isinstance(name, torch.dtype) else name
    long = DTYPES.get(given, given)
    if long not in DTYPES.values():
        raise RequestError(
            f"dtype is {given!r}, but should be one of {', '.join(dict.fromkeys(DTYPES.values()))}."
        )
    return getattr(torch, long)


def _refuse(others: Mapping[str, Any]) -> None:
    """RequestError for arguments that `Animator.load` does not take, with what it calls them."""
    for name in others:
        if name in RENAMED:
            raise RequestError(f"Animator.load has no argument {name}: {RENAMED[name]}.")
        close = get_close_matches(name, ARGUMENTS, n=1)
        hint = f" Did you mean {close[0]}?" if close else f" It takes {', '.join(ARGUMENTS)}."
        raise RequestError(f"Animator.load has no argument {name}.{hint}")


def _load_motion(place: Path) -> MotionModel:
    net = MotionModel.load(place)
    if net.spec.conv_in is not None:
        raise WrongKind(
            f"{place.name} is PIA, which sets a given image in motion; from text alone use another motion "
            "module, such as v3_sd15_mm.ckpt."
        )
    return net.eval().requires_grad_(False)


def _motion_card(place: Path) -> ModelCard:
    """The card in the motion's folder, over that of the model that it is a part of."""
    own = ModelCard.read(place)
    part = place.name in INSIDE and (place.parent / "model_index.json").is_file()
    return _merged(ModelCard.read(place.parent), own) if part else own


def _merged(base: ModelCard, motion: ModelCard) -> ModelCard:
    """The motion's card wins over the base's."""
    return ModelCard(
        name=base.name or motion.name,
        family=base.family or motion.family,
        defaults=base.defaults | motion.defaults,
        schedule=motion.schedule.merged_over(base.schedule),
        concepts=base.concepts or motion.concepts,
    )


def _read_loras(
    given: Mapping[str, Mapping[str, LayerWeights]], base: Checkpoint
) -> list[tuple[str, Lora, LayerWeights]]:
    """Flag, LoRA and weight of each; WrongKind or Mismatch for what this base cannot take."""
    if not any(given.values()):
        return []
    family = base.info.base
    known = family if family != "custom" else None  # of other bases only the shapes can tell
    return [
        (flag, Lora.load(lora, known), weight)
        for flag, loras in given.items()
        for lora, weight in loras.items()
    ]


def _fitting(
    adapters: Iterable[tuple[str, Lora, LayerWeights]],
    pipeline: Pipeline,
    motion: MotionModel | None,
) -> dict[Lora, LayerWeights]:
    """The same, once the shapes were compared: Mismatch for one that does not fit, before any sampling."""
    for _, lora, _ in adapters:
        lora.check_fit(pipeline, motion)
    return {lora: weight for _, lora, weight in adapters}


def _bundled_words(pipeline: Pipeline, loras: Sequence[Lora]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Teaches the words that came with LoRAs, and returns them and a note for each that cannot be used."""
    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    for embedding in (word for lora in loras for word in lora.words):
        try:
            words += load_textual_inversions(pipeline, [embedding])
        except (Mismatch, RequestError) as error:
            notes += (f"The word {embedding.word!r} that came with {embedding.name} is not used: {error}",)
    return words, notes


def _note(flag: str, lora: Lora) -> str | None:
    """One line for a file that was given under the other flag: what it is, and what is done with it."""
    if flag == "loras" and lora.moves:
        return f"{lora.name} is {lora.kind.title}: it is applied to the motion, as `motion_loras=` does."
    if flag == "motion_loras" and not lora.moves:
        return f"{lora.name} is {lora.kind.title}: it is applied to the image model, as `loras=` does."
    return None
