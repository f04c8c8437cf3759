"""Motion weights between layouts: strict, invertible, pure functions on dicts. Builds nothing, reads no file.

    to_canonical     any layout -> canonical names; positional tables that are the formula are left out
    from_canonical   back again; every positional table of the layout is written, stored or by the formula

Every tensor is used, or known and dropped (image layers of a whole UNet), or an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from stillmotion.checkpoints.motion_keys import (
    EXTRAS,
    MODULE,
    POSITIONS,
    WHOLE_UNET,
    Layout,
    canonical_names,
    layout_name,
    layout_of,
)
from stillmotion.errors import Damaged, Mismatch, UnknownFile
from stillmotion.motion.config import MotionConfig

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

NO_TABLES = ("animatelcm",)
"""Families whose original files have no positional tables."""


def holds_whole_unet(names: Iterable[str]) -> bool:
    """Whether there are image layers beside the motion modules (what the original train.py saves)."""
    return any(WHOLE_UNET.match(name) and name not in EXTRAS for name in names)


def rename(tensors: Mapping[str, Value], layout: Layout) -> dict[str, Value]:
    """The same tensors (or shapes) by canonical name, image layers of a whole UNet dropped.

    Raises `UnknownFile` naming a tensor that is neither motion nor known.
    """
    whole = holds_whole_unet(tensors)
    renamed = {}
    for name, value in tensors.items():
        names = canonical_names(name, layout)
        if not names and whole and WHOLE_UNET.match(name):
            continue
        if not names and name not in EXTRAS:
            raise UnknownFile(
                f"Among the motion weights is {name}, which belongs to no motion module we know."
            )
        renamed.update(dict.fromkeys(names or (name,), value))
    return renamed


def to_canonical(state: Mapping[str, Tensor], layout: Layout | None = None) -> dict[str, Tensor]:
    """Motion weights of any layout by canonical name; `layout` is read from the names when it is not given.

    A positional table is kept only where it differs from the formula by more than its dtype's rounding.
    """
    from stillmotion.motion.positions import follows_formula

    layout = layout or layout_of(state)
    if layout is None:
        raise UnknownFile("There are no motion modules among these weights.")
    return {
        name: tensor
        for name, tensor in rename(state, layout).items()
        if not (name.endswith(POSITIONS) and follows_formula(tensor))
    }


def from_canonical(
    state: Mapping[str, Tensor], spec: MotionConfig, layout: Layout = "diffusers"
) -> dict[str, Tensor]:
    """Canonical weights in a layout, with all positional tables it has; the inverse of `to_canonical`."""
    _check(state, spec)
    written = {
        layout_name(name, layout): tensor for name, tensor in state.items() if not name.endswith(POSITIONS)
    }
    if (
        layout != "diffusers"
        and spec.name in NO_TABLES
        and not any(name.endswith(POSITIONS) for name in state)
    ):
        return written
    for prefix, (channels, _) in spec.modules().items():
        tables = _tables(state, f"{prefix}.temporal_transformer.", channels, spec)
        if layout == "diffusers" and not all(table.equal(tables[0]) for table in tables):
            raise Mismatch(
                f"The two attentions of {prefix} have different positional tables; a diffusers "
                "MotionAdapter has one "
                "for both. Save it as one .safetensors file instead."
            )
        names = (layout_name(f"{prefix}.temporal_transformer.{end}", layout) for end in POSITIONS)
        # copies: safetensors refuses tensors that share memory
        written.update({name: table.clone() for name, table in zip(names, tables, strict=False)})
    return written


def _tables(state: Mapping[str, Tensor], prefix: str, channels: int, spec: MotionConfig) -> list[Tensor]:
    """The positional tables (1, positions, channels) of a module: the stored ones, else the formula."""
    from stillmotion.motion.positions import sinusoid

    dtype = state[f"{prefix}norm.weight"].dtype
    formula = sinusoid(spec.positions, channels, dtype)[None]
    return [state.get(prefix + end, formula) for end in POSITIONS[: spec.attentions]]


def _check(state: Mapping[str, Tensor], spec: MotionConfig) -> None:
    expected = spec.shapes()
    for name in expected:
        if name not in state:
            raise Damaged(f"The {spec.name} motion weights are not complete: {name} is missing.")
    for name, tensor in state.items():
        if name in EXTRAS or (name.endswith(POSITIONS) and MODULE.fullmatch(name)):
            continue
        if name not in expected:
            raise UnknownFile(f"{spec.name} motion ({spec.shape}) has no tensor {name}.")
        if tuple(tensor.shape) != expected[name]:
            raise Mismatch(f"{name} is {tuple(tensor.shape)}; {spec.name} motion has {expected[name]} there.")
