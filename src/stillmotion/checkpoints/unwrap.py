"""What trainers wrap around a state dict, taken off: nested dicts, counters beside it, prefixes on every key.

    {"epoch": 3, "state_dict": {"module.unet.down_blocks...": tensor}}   ->   {"down_blocks...": tensor}

Pure functions on mappings: a leaf is whatever the caller calls one (a tensor, a shape).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from stillmotion.errors import Damaged
from stillmotion.foreign import printable

Leaf = TypeVar("Leaf")

WRAPPERS = ("state_dict", "model_state_dict", "controlnet", "module", "model")
"""Names under which loaders have met the state dict itself."""

PREFIXES = ("module.", "_orig_mod.", "unet.")
"""Prefixes of DataParallel, torch.compile and whole-UNet training; taken off when every key has them."""


DEPTH = 64
"""Dicts inside one another."""
MOST_VALUES = 100_000
"""Values in all dicts of a file, those met twice counted twice: far above any file of weights."""
LONGEST_NAME = 1000


@dataclass
class Unwrapped(Generic[Leaf]):
    """A flat state dict, with what was beside it and what was taken off."""

    tensors: dict[str, Leaf]
    extras: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


def unwrap(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool]) -> Unwrapped[Any]:
    """A flat dict of the leaves of `tree`; nested dicts that are no wrappers become dotted names."""
    extras: dict[str, Any] = {}
    steps: list[str] = []
    while (wrapper := next((w for w in WRAPPERS if _holds_leaves(tree.get(w), is_leaf)), None)) is not None:
        beside = ((key, value) for key, value in tree.items() if isinstance(key, str) and key != wrapper)
        extras.update({key: value for key, value in beside if not is_leaf(value)})
        steps.append(wrapper)
        if len(steps) > DEPTH:
            raise _too_deep()
        tree = tree[wrapper]
    tensors: dict[str, Any] = {}
    for name, value in _flatten(tree):
        (tensors if is_leaf(value) else extras)[name] = value
    tensors, stripped = strip_prefixes(tensors)
    return Unwrapped(tensors, extras, (*steps, *stripped))


def strip_prefixes(tensors: Mapping[str, Leaf]) -> tuple[dict[str, Leaf], list[str]]:
    """The same tensors without the prefixes every key has, and the prefixes that were taken off.

    `unet.` stays on LoRA keys, where it tells the UNet's part from the text encoder's.
    """
    result, taken = dict(tensors), []
    lora = any("lora" in name for name in result)
    while prefix := next(
        (p for p in PREFIXES if result and all(name.startswith(p) for name in result)), None
    ):
        if prefix == "unet." and lora:
            break
        result = {name.removeprefix(prefix): value for name, value in result.items()}
        taken.append(prefix)
    plain = {name.replace("._orig_mod.", "."): value for name, value in result.items()}
    if len(plain) != len(result):
        raise Damaged(
            "Two tensors have the same name once `_orig_mod.` is taken off: the file mixes two models."
        )
    if plain.keys() != result.keys() and "_orig_mod." not in taken:
        taken.append("_orig_mod.")
    return plain, taken


def _holds_leaves(value: Any, is_leaf: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and any(is_leaf(leaf) for _, leaf in _flatten(value))


def _flatten(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that is no dict, by its dotted name, in the order of the file."""
    waiting = [iter([("", tree, 0)])]
    for _ in range(MOST_VALUES):
        while (found := next(waiting[-1], None)) is None:
            waiting.pop()
            if not waiting:
                return
        name, value, depth = found
        if len(name) > LONGEST_NAME or printable(name) != name:
            raise Damaged(f"The name {printable(name[:60])}... in the file is no name of a tensor.")
        if depth > DEPTH:
            raise _too_deep()
        if isinstance(value, Mapping) and (value or not depth):
            waiting.append(iter([(_dotted(name, key), each, depth + 1) for key, each in value.items()]))
        else:
            yield name, value
    raise Damaged(f"The file holds more than {MOST_VALUES:,} values: no file of weights does.")


def _dotted(name: str, key: Any) -> str:
    key = str(key) if isinstance(key, (str, int)) else type(key).__name__
    return f"{name}.{key}" if name else key


def _too_deep() -> Damaged:
    return Damaged(f"The file holds dicts more than {DEPTH} deep in one another, or one that holds itself.")
