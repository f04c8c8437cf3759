"""Modules of diffusers and transformers made from a config and named tensors.

The libraries' own `from_pretrained` replaces functions of torch for the whole process while it runs
(accelerate's `init_empty_weights`, transformers' `no_init_weights` and default dtype), so modules that
another thread makes meanwhile have no storage. Here torch's device context is used, a thread's own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from stillmotion.checkpoints.files import read_json
from stillmotion.checkpoints.finite import check_finite, is_finite
from stillmotion.errors import Damaged, WeightsError, WrongKind

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS = {
    "UNet2DConditionModel": "diffusers",
    "ControlNetModel": "diffusers",
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "AsymmetricAutoencoderKL": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
}
"""Classes that a part of a pipeline may have, and the library each is from."""

LARGEST = {"number": 2**24, "layers": 1000, "list": 10_000}
"""Numbers, counts of layers and lists in the config of a model or scheduler."""

MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What classes of the libraries raise when a setting is wrong, wherever in their making it is met."""


class _ComputedBuffers(TorchFunctionMode):
    """Within torch.device("meta"): `arange` stays on the CPU, as no file holds what is computed with it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({"device": "cpu"} | kwargs if func is torch.arange else kwargs))


def make_module(kind: str, config: Path) -> nn.Module:
    """A module of the class `kind` after config.json in a folder, its weights without storage (meta).

    Raises `WrongKind` for a class that is not in `MODELS`, `Damaged` for a config that does not fit it.
    """
    if kind not in MODELS:
        raise WrongKind(f"{config} is a {kind}; known are {', '.join(MODELS)}.")
    return module_from(kind, read_json(config / "config.json"), str(config / "config.json"))


def module_from(kind: str, settings: Mapping[str, Any], name: str) -> nn.Module:
    """The same after settings, which errors call `name`."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        check_settings(settings)
        with torch.device("meta"), _ComputedBuffers():
            return _made(kind, dict(settings))
    except (*MISFITS, StrictDataclassError) as error:
        raise Damaged(f"{name} does not describe a {kind} ({why(error)}).") from error


def check_settings(settings: Any, name: str = "") -> None:
    """ValueError for a number or list in a config that no model has: making it would take for ever."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            check_settings(value, str(key))
    elif isinstance(settings, (list, tuple)):
        if len(settings) > LARGEST["list"]:
            raise ValueError(f"{name} has {len(settings)} entries")
        for value in settings:
            check_settings(value, name)
    elif isinstance(settings, (int, float)):
        most = LARGEST["layers"] if "layers" in name else LARGEST["number"]
        if abs(settings) > most:
            raise ValueError(f"{name} is {settings}, but may be at most {most}")


def why(error: Exception) -> str:
    """The first line of what a library says, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _made(kind: str, settings: dict[str, Any]) -> nn.Module:
    if MODELS[kind] == "diffusers":
        import diffusers

        return getattr(diffusers, kind).from_config(settings)
    import transformers

    made = getattr(transformers, kind)
    config = made.config_class.from_dict(settings.get("text_config", settings))
    config.dtype = None  # else the model would set the default dtype of the process for a moment
    return made(config)


def fill(
    module: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, part: str, name: str
) -> nn.Module:
    """The module with these weights in `dtype`, ready to be used; tensors of that dtype are not copied.

    Args:
        module: one of `make_module`.
        weights: its tensors by its own names; others are left out.
        dtype: that of the filled module.
        part: what to call the module in errors, such as "unet".
        name: what to call the model in errors.

    Raises `Damaged` for a tensor that is missing, has another shape or values that are not finite, and
    `WeightsError` for values that `dtype` does not reach.
    """
    filled = {}
    for key, expected in module.state_dict().items():
        if key not in weights:
            raise Damaged(f"The {part} in {name} is not complete: {key} is missing.")
        found = weights[key]
        if found.shape != expected.shape:
            shapes = f"{tuple(found.shape)}; expected {tuple(expected.shape)}"
            raise Damaged(f"In the {part} of {name}, {key} is {shapes}.")
        filled[key] = found.to(dtype) if found.is_floating_point() else found
        if not is_finite(filled[key]):
            _refuse_not_finite(found, dtype, key, f"the {part} of {name}")
    module.load_state_dict(filled, assign=True)
    for key, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta:
            raise Damaged(f"The {part} in {name} is not complete: {key} is neither stored nor computed.")
    return module.eval()


def _refuse_not_finite(stored: Tensor, dtype: torch.dtype, key: str, name: str) -> None:
    check_finite({key: stored}, name)
    raise WeightsError(
        f"{key} in {name} has values of up to {stored.float().abs().max():.0f}, too large for "
        f"{str(dtype).removeprefix('torch.')}. Use `dtype='float32'`."
    )


@contextmanager
def without_notes() -> Iterator[None]:
    """Within it transformers logs only errors of this thread, such as not that torchvision is missing."""
    from transformers.utils import logging as library

    library.get_logger()  # makes the handlers on first use
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def current_names(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as the libraries saved them, at any time, by the names that their modules have today."""
    found = dict(state)
    fix: Any = getattr(module, "_fix_state_dict_keys_on_load", None)
    if fix is not None:  # attention of VAEs: query, key, value, proj_attn
        fix(found)
        return found
    # transformers 5.6 took the `text_model.` out of CLIPTextModel, but not out of the one with a projection
    if any(key.startswith("text_model.") for key in module.state_dict()):
        return found
    return {key.removeprefix("text_model."): value for key, value in found.items()}
