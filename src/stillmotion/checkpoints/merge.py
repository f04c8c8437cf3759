"""Several models become one: LoRAs baked into what they change, checkpoints mixed by weights.

    bake     weight + sum of the changes                      as strong as the LoRAs would be while attached
    mix      A * (1 - b - c) + B * b + C * c                  each tensor, of models of the same architecture

Both compute in float32 and store in the precision of the first model. Weight 0 leaves every bit as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillmotion.attachments.lora import WeightLike
from stillmotion.checkpoints.checkpoint import Source, open_checkpoint
from stillmotion.checkpoints.convert import check_target, load_model, save_model
from stillmotion.checkpoints.lora_model import Lora, own_paths
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Mismatch, RequestError, StillmotionWarning, WrongKind
from stillmotion.lora.deltas import LayerDelta, LoraAlpha
from stillmotion.request.layer_weights import LayerWeights

if TYPE_CHECKING:
    from stillmotion.diffusion.pipeline import Pipeline

    Model = MotionModel | Pipeline


def merge(
    source: Source,
    target: str | Path,
    loras: Mapping[str, WeightLike] | None = None,
    others: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    lora_alpha: LoraAlpha = "use",
    overwrite: bool = False,
) -> Path:
    """Writes the model in `source`, mixed with `others` and with `loras` baked in; returns where.

    Args:
        source: a text-to-image model or a motion module.
        target: a folder, or a file ending in .safetensors.
        loras: files and their weights, as in `LayerWeights`.
        others: models of the same kind and their shares of the result.
        dtype: of the weights written; that of the source by default.
        lora_alpha: "ignore" where alpha should not count.
        overwrite: whether a target that is there is replaced.

    Errors as in `mix` and `bake`.
    """
    target = Path(target)
    check_target(target, overwrite)
    _check_shares(others or {})
    loaded = {Lora.load(name): LayerWeights.of(weight) for name, weight in (loras or {}).items()}
    opened = open_checkpoint(source)
    model = load_model(opened)
    for name, share in _running(others or {}):
        mix(model, load_model(name), share, opened.source, name)
    bake(model, loaded, lora_alpha, opened.source)
    for lora in loaded:
        if lora.words:
            warnings.warn(_words_lost(lora), StillmotionWarning, stacklevel=2)
    for network in _networks(model).values():
        network.to(dtype)
    return save_model(model, target, overwrite=overwrite)


def bake(
    model: Model, loras: Mapping[Lora, WeightLike], lora_alpha: LoraAlpha = "use", name: str = "the model"
) -> None:
    """Puts the changes of LoRAs, each times its weight, into the weights of a pipeline or a motion module.

    Args:
        model: a pipeline or a `MotionModel`, changed in place.
        loras: `Lora` objects and their weights, as in `LayerWeights`.
        lora_alpha: "ignore" where alpha should not count.
        name: what to call the model in errors.

    WrongKind for a motion LoRA on a pipeline or the other way round, Mismatch where a layer does not fit,
    RequestError for a weight along the frames: a file has none.
    """
    changes: dict[Any, list[tuple[LayerDelta, float]]] = {}
    for lora, weight in loras.items():
        layer_weights = LayerWeights.of(weight)
        _check_bakes(model, lora, layer_weights, lora_alpha, name)
        for layer, delta, scale in _changes(model, lora, layer_weights):
            changes.setdefault(layer, []).append((delta, scale))
    for layer, each in changes.items():
        before = layer.weight.detach().float()
        after = sum((delta.change(before, scale, lora_alpha) for delta, scale in each), before)
        biases = [delta.bias_change(layer.bias, scale, lora_alpha) for delta, scale in each]
        layer.weight.data = after.to(layer.weight.dtype)
        for bias in biases:
            if bias is not None:
                layer.bias.data += bias.to(layer.bias)


def mix(
    model: Model, other: Model, share: float, name: str = "the first model", other_name: str = "the other"
) -> None:
    """Moves a pipeline or a motion module towards another by `share` of the way, in place.

    Args:
        model: changed in place.
        other: one of the same kind and shapes.
        share: 0 leaves the model as it is, 1 makes it the other.
        name: what to call the model in errors.
        other_name: what to call the other.

    Mismatch naming the part or tensor in which the two differ.
    """
    ours, theirs = _networks(model), _networks(other)
    for what, mine, yours in [("parts", ", ".join(ours), ", ".join(theirs)), *_kinds(model, other)]:
        if mine != yours:
            raise Mismatch(
                f"{name} and {other_name} are not of the same kind and cannot be mixed: {what} {mine} in the "
                f"first, {yours} in the other."
            )
    states = [(ours[part].state_dict(), theirs[part].state_dict()) for part in ours]
    if isinstance(model, MotionModel) and isinstance(other, MotionModel):
        states.append((model.extra, other.extra))
    for mine, yours in states:
        _check_same(mine, yours, name, other_name)
    for mine, yours in states if share else ():
        for key, tensor in mine.items():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(tensor.float(), yours[key].float(), share))


def _words_lost(lora: Lora) -> str:
    words = ", ".join(repr(embedding.word) for embedding in lora.words)
    return (
        f"{lora.name} brings words for prompts ({words}), which a merged model cannot hold: they are left "
        "out. Where they are wanted, use the LoRA when animating instead."
    )


def _running(others: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Shares of what is mixed so far, so that in the end each has its own: b / (1 - c), then c."""
    left = 1.0 - sum(others.values())
    for name, share in others.items():
        left += share
        yield name, share / left if left else 0.0


def _check_shares(others: Mapping[str, float]) -> None:
    for name, share in others.items():
        if not 0 <= share <= 1:
            raise RequestError(
                f"The share of {name} is {share:g}, but should be from 0 to 1: give {name}=0.3."
            )
    if (total := sum(others.values())) > 1:
        raise RequestError(
            f"The shares are {total:g} together, but the first model has what they leave of 1."
        )


def _check_bakes(
    model: Model, lora: Lora, layer_weights: LayerWeights, lora_alpha: LoraAlpha, name: str
) -> None:
    motion = model if isinstance(model, MotionModel) else None
    if layer_weights.by_frame:
        raise RequestError(
            f"{lora.name} has a weight along the frames, which a file of weights cannot have: give one "
            "number, or leave it out and use `loras=` when animating."
        )
    if set(lora.parts) != {"motion"} if motion else lora.moves:
        kinds = ("a motion module", "a text-to-image model")
        ours, fits = kinds if motion else kinds[::-1]
        raise WrongKind(f"{lora.name} is {lora.kind.title}, but {name} is {ours}: merge it into {fits}.")
    lora.check_fit(None if motion else model, motion)
    for layer, delta, _ in _changes(model, lora, layer_weights):
        if layer.bias is None and delta.bias_change(None) is not None:
            raise Mismatch(
                f"{lora.name} adds a bias to a {type(layer).__name__} of {name} that has none, so it cannot "
                "be merged: use `loras=` when animating."
            )


def _changes(
    model: Model, lora: Lora, layer_weights: LayerWeights
) -> Iterator[tuple[nn.Module, LayerDelta, float]]:
    """Layer, change and weight, for every layer that a LoRA changes by more than nothing."""
    networks = _networks(model)
    for part, layers in lora.parts.items():
        for path, delta in own_paths(networks[part], layers).items():
            if scale := layer_weights.for_layer(part, path):
                yield networks[part].get_submodule(path), delta, scale


def _networks(model: Any) -> dict[str, nn.Module]:
    """The networks of a model by what LoRAs call them."""
    if isinstance(model, MotionModel):
        return {"motion": model}
    return {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}


def _kinds(model: Model, other: Model) -> Iterator[tuple[str, Any, Any]]:
    """What must agree beside the tensors: settings that change what the same weights mean."""
    if isinstance(model, MotionModel) and isinstance(other, MotionModel):
        for column in ("motion_norm", "resnet_norm", "heads", "norm_groups", "positions"):
            yield column, getattr(model.spec, column), getattr(other.spec, column)
    elif not isinstance(model, MotionModel) and not isinstance(other, MotionModel):
        mine, yours = (each.scheduler.config.get("prediction_type") for each in (model, other))
        yield "prediction_type", mine, yours


def _check_same(mine: Mapping[str, Tensor], yours: Mapping[str, Tensor], name: str, other: str) -> None:
    for key in (*mine, *yours):
        sizes = [tuple(state[key].shape) if key in state else None for state in (mine, yours)]
        if sizes[0] != sizes[1]:
            mine_, yours_ = ("missing" if size is None else size for size in sizes)
            raise Mismatch(
                f"{name} and {other} are not of the same architecture and cannot be mixed: {key} is {mine_} "
                f"in the first and {yours_} in the other."
            )
