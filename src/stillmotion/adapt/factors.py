"""The change of one layer as the factors that files hold, and the matrix they stand for. Pure functions.

    lora    delta = up @ down                          Hu et al. 2021; convolutions: LoCon; `mid`: Tucker core
    loha    delta = (w1_a @ w1_b) * (w2_a @ w2_b)      FedPara (Hyeon-Woo et al. 2021), LyCORIS
    lokr    delta = kron(w1, w2)                       Kronecker factors, each whole or a product; LyCORIS
    full    delta = diff                               the difference itself; `bias`: that of the bias

A file's `alpha` scales it: delta * alpha / rank, as kohya defines it; without alpha the scale is 1. DoRA (Liu
et al. 2024) sets the length of each row (or column) of weight + delta to its `magnitude`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stillmotion.errors import Damaged, Mismatch

Algorithm = Literal["lora", "loha", "lokr", "full"]
Parity = Literal["kohya", "original"]
"""Whether alpha counts: by kohya's definition, or not, as in the original AnimateDiff code."""

REQUIRED: dict[Algorithm, tuple[tuple[str, ...], ...]] = {
    "lora": (("down", "up"),),
    "loha": (("w1_a", "w1_b", "w2_a", "w2_b"),),
    "lokr": (("w1",), ("w1_a", "w1_b")),
    "full": (("diff",),),
}
"""Tensors of which one group must be there; Tucker cores (`mid`, `t1`, `t2`) and lokr's w2 join them."""


@dataclass(frozen=True)
class Factors:
    """What a file holds for one layer: tensors by the names above, `alpha`, and `magnitude` for DoRA."""

    algorithm: Algorithm
    tensors: Mapping[str, Tensor]
    alpha: float | None = None
    magnitude: Tensor | None = None

    def __post_init__(self) -> None:
        groups = REQUIRED[self.algorithm]
        if not any(all(name in self.tensors for name in group) for group in groups):
            wanted = " or ".join(" and ".join(group) for group in groups)
            raise Damaged(f"A {self.algorithm} layer has {', '.join(self.tensors)}; it needs {wanted}.")
        if self.algorithm == "lokr" and not ("w2" in self.tensors or {"w2_a", "w2_b"} <= self.tensors.keys()):
            raise Damaged("A lokr layer has no second factor: w2, or w2_a and w2_b.")

    @property
    def rank(self) -> int | None:
        """The inner dimension; None where the factors are whole (alpha has no meaning then)."""
        names = {"lora": ("down",), "loha": ("w1_b",), "lokr": ("w2_b", "w1_b"), "full": ()}[self.algorithm]
        return next((self.tensors[name].shape[0] for name in names if name in self.tensors), None)

    @property
    def bias(self) -> Tensor | None:
        """The change of the layer's bias, which only full differences have."""
        return self.tensors.get("bias")

    def scale(self, parity: Parity = "kohya") -> float:
        """alpha / rank, or 1 where there is no alpha, no rank, or the original's arithmetic is wanted."""
        if self.alpha is None or self.rank is None or parity == "original":
            return 1.0
        return self.alpha / self.rank

    def delta(self, shape: torch.Size | tuple[int, ...], parity: Parity = "kohya") -> Tensor:
        """The change of a weight of this shape, fp32, scaled by alpha; Mismatch if the sizes do not agree."""
        t = {name: tensor.float() for name, tensor in self.tensors.items()}
        change = {"lora": _lora, "loha": _loha, "lokr": _lokr, "full": _full}[self.algorithm](t)
        if change.numel() != torch.Size(shape).numel() or change.shape[0] != shape[0]:
            raise Mismatch(
                f"a change of {tuple(change.shape)} does not fit a weight of {tuple(shape)}: the adapter was "
                "made for another model"
            )
        return change.reshape(shape) * self.scale(parity)

    def merged(self, weight: Tensor, strength: float = 1.0, parity: Parity = "kohya") -> Tensor:
        """`weight` with this change in it, fp32. A DoRA at half strength is half way to the whole change."""
        weight = weight.float()
        changed = weight + self.delta(weight.shape, parity) * (strength if self.magnitude is None else 1.0)
        if self.magnitude is None:
            return changed
        return weight + strength * (rescaled(changed, self.magnitude.float()) - weight)


def rescaled(weight: Tensor, magnitude: Tensor) -> Tensor:
    """`weight` with the lengths in `magnitude`: of its rows (one per output), else of its columns."""
    flat = weight.flatten(1)
    if magnitude.shape[0] == weight.shape[0]:
        lengths = magnitude.reshape(-1, 1) / flat.norm(dim=1, keepdim=True)
        return (flat * lengths).view_as(weight)
    columns = weight.transpose(0, 1).flatten(1)  # one length per input, over outputs and kernel
    lengths = magnitude.reshape(-1, *[1] * (weight.ndim - 1)) / columns.norm(dim=1).view(
        -1, *[1] * (weight.ndim - 1)
    )
    return (weight.transpose(0, 1) * lengths).transpose(0, 1)


def _tucker(core: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """core (i, j, ...), outer (i, out), inner (j, in) -> (out, in, ...)."""
    return torch.einsum("ij...,io,jn->on...", core, outer, inner)


def _lora(t: Mapping[str, Tensor]) -> Tensor:
    up, down = t["up"], t["down"]
    if "mid" in t:
        return _tucker(t["mid"], up.flatten(1).T, down.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def _loha(t: Mapping[str, Tensor]) -> Tensor:
    if "t1" in t:
        return _tucker(t["t1"], t["w1_a"], t["w1_b"]) * _tucker(t["t2"], t["w2_a"], t["w2_b"])
    return (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])


def _lokr(t: Mapping[str, Tensor]) -> Tensor:
    first = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    if "w2" in t:
        second = t["w2"]
    elif "t2" in t:
        second = _tucker(t["t2"], t["w2_a"], t["w2_b"])
    else:
        second = (t["w2_a"] @ t["w2_b"].flatten(1)).view(t["w2_a"].shape[0], *t["w2_b"].shape[1:])
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return torch.kron(first, second.contiguous())  # it views both as other shapes


def _full(t: Mapping[str, Tensor]) -> Tensor:
    return t["diff"]
