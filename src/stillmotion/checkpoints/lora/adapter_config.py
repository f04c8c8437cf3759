"""adapter_config.json, which peft writes beside adapter_model.safetensors: what it tells of the tensors.

peft keeps alpha, rank patterns and rsLoRA there and nowhere in the tensors. What changes the meaning of the
tensors in a way that is not applied here is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillmotion.checkpoints.lora.lora_layers import DOTTED
from stillmotion.errors import Damaged, WeightsError, WrongKind
from stillmotion.foreign import read_json

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

APPLIED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3")
"""Values of peft_type whose tensors are applied."""

USUAL_ALPHA = {"LORA": "lora_alpha", "ADALORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""Setting that holds alpha, which is 8 where it is not said."""

TOLD = ("lora_alpha", "alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "feedforward_modules")
"""Settings that say how the tensors are scaled, and which of (IA)^3 scale inputs."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of init_lora_weights with which training also changed the weights of the base."""

OTHER_MATHS = (
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""Settings that, where set, give the tensors another meaning."""


def adapter_folder(path: Path) -> Path:
    """The folder of the one adapter below `path`: peft gives adapters of other names than "default" one each.

    WeightsError naming them if there are several.
    """
    if not path.is_dir() or any((path / name).is_file() for name in (CONFIG, "model_index.json")):
        return path
    below = sorted(entry.name for entry in path.iterdir() if (entry / CONFIG).is_file())
    if not below or any((path / name).is_file() for name in WEIGHTS):
        return path
    if len(below) > 1:
        raise WeightsError(
            f"{path} holds {len(below)} adapters ({', '.join(below)}): name the folder of one, as in "
            f"{path / below[0]}."
        )
    return path / below[0]


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The adapter_config.json in a folder, or beside a file of peft's name; empty where there is none."""
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG
    if not file.is_file() or not (path.is_dir() or path.name in WEIGHTS):
        return {}
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise Damaged(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(config, dict):
        raise Damaged(f"{file} holds a {type(config).__name__}, not the settings of an adapter.")
    return config


def check_config(config: Mapping[str, Any], name: str) -> None:
    """WrongKind naming what this adapter of peft does that is not applied here."""
    kind = _kind(config)
    if kind not in APPLIED:
        raise WrongKind(
            f"{name} is an adapter of peft of the type {kind}, but {', '.join(APPLIED)} are applied: merge "
            "it into the model with peft's merge_and_unload, and use that model."
        )
    began = config.get("init_lora_weights")
    if isinstance(began, str) and began.lower().startswith(CHANGES_BASE):
        raise WrongKind(
            f"{name} was trained with init_lora_weights={began!r}, which also changes the base, so it does "
            "not fit the base as it is: save it again with peft's path_initial_model_for_weight_conversion."
        )
    if other := [setting for setting in OTHER_MATHS if config.get(setting)]:
        raise WrongKind(
            f"{name} was trained with peft's {other[0]}, which is not applied here: merge it into the model "
            "with peft's merge_and_unload, and use that model."
        )


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the config tells of scales, in the form in which diffusers keeps it in a file's header."""
    told = {key: config[key] for key in TOLD if config.get(key) is not None}
    if config and _kind(config) in USUAL_ALPHA:
        told.setdefault(USUAL_ALPHA[_kind(config)], 8)
    return {f"{start}{key}": value for start in DOTTED for key, value in told.items()}


def _kind(config: Mapping[str, Any]) -> str:
    """peft_type, which some programs write as "lora" or "PeftType.LORA"."""
    return str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()


def saves_whole(config: Mapping[str, Any]) -> bool:
    """Whether weights or biases that replace the model's own are among the tensors."""
    return bool(config.get("modules_to_save")) or config.get("bias", "none") != "none"
