"""The change of one layer: its tensors as files hold them, and the matrix they stand for.

    lora    change = up @ down                         Hu et al. 2021; convolutions: LoCon; `mid`: Tucker core
    loha    change = (w1_a @ w1_b) * (w2_a @ w2_b)     FedPara (Hyeon-Woo et al. 2021), LyCORIS
    lokr    change = kron(w1, w2)                      Kronecker factors, each whole or a product; LyCORIS
    glora   change = b1 @ b2 + W @ a1 @ a2             Chavan et al. 2023, LyCORIS; `bm`: Tucker core
    ia3     change = W * weight                        Liu et al. 2022, per output or (`on_input`) input;
                                                       peft's `gain` scales the bias of the layer too
    oft     change = (R - 1) @ W                       Qiu et al. 2023, rotations R of blocks; LyCORIS, kohya
    boft    change = (R_m ... R_2 R_1 - 1) @ W         Liu et al. 2024, butterflies of such rotations; LyCORIS
    full    change = diff                              the difference itself; norm: that of a norm layer
    whole   change = weight - W                        another weight in place of W (peft's modules_to_save)

A file's `alpha` scales it: change * alpha / rank, as kohya defines it; without alpha the scale is 1. For oft
and boft alpha is the constraint of the rotation. DoRA (Liu et al. 2024) sets the length of each row (or
column) of W + change to its `magnitude`. Any layer may have a change of its bias beside that of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stillmotion.errors import Damaged, Mismatch

Algorithm = Literal["lora", "loha", "lokr", "glora", "ia3", "oft", "boft", "full", "norm", "whole"]
LoraAlpha = Literal["use", "ignore"]
"""Whether alpha counts, by kohya's definition, or not, as in the original AnimateDiff code."""

REQUIRED: dict[Algorithm, tuple[tuple[str, ...], ...]] = {
    "lora": (("down", "up"),),
    "loha": (("w1_a", "w1_b", "w2_a", "w2_b"),),
    "lokr": (("w1",), ("w1_a", "w1_b")),
    "glora": (("a1", "a2", "b1", "b2"),),
    "ia3": (("weight", "on_input"), ("gain", "on_input")),
    "oft": (("blocks",),),
    "boft": (("blocks",),),
    "full": (("diff",), ("bias",)),
    "norm": (("diff",), ("bias",)),
    "whole": (("weight",), ("whole_bias",)),
}
"""Tensors of which one group must be there; Tucker cores, rescaling, biases and lokr's w2 join them."""

RANKED: dict[Algorithm, tuple[str, ...]] = {
    "lora": ("down",),
    "loha": ("w1_b",),
    "lokr": ("w2_b", "w1_b"),
    "glora": ("a2",),
}
"""Tensors whose first dimension is the rank; other algorithms have none."""


@dataclass(frozen=True)
class LayerDelta:
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
        if empty := [name for name, tensor in self.tensors.items() if tensor.numel() == 0]:
            size = tuple(self.tensors[empty[0]].shape)
            raise Damaged(f"A {self.algorithm} layer has nothing in {empty[0]}, which is of size {size}.")

    @property
    def rank(self) -> int | None:
        """The inner dimension; None where the factors are whole (alpha has no meaning then)."""
        names = RANKED.get(self.algorithm, ())
        return next((self.tensors[name].shape[0] for name in names if name in self.tensors), None)

    @property
    def bias(self) -> Tensor | None:
        """The difference of the layer's bias, where the file has one."""
        return self.tensors.get("bias")

    @property
    def linear(self) -> bool:
        """Whether half the weight is half the change; not so for DoRA, BOFT and rescaled OFT."""
        return self.magnitude is None and self.algorithm != "boft" and "rescale" not in self.tensors

    @property
    def needs_weight(self) -> bool:
        """Whether the change depends on the weight that is changed."""
        return self.magnitude is not None or self.algorithm in ("glora", "ia3", "oft", "boft", "whole")

    def scale(self, lora_alpha: LoraAlpha = "use") -> float:
        """alpha / rank, or 1 where there is no alpha, no rank, or alpha is to be ignored."""
        if self.alpha is None or self.rank is None or lora_alpha == "ignore":
            return 1.0
        return self.alpha / self.rank

    def dense(self, shape: torch.Size | tuple[int, ...], lora_alpha: LoraAlpha = "use") -> Tensor:
        """The change of a weight of this shape, fp32, scaled by alpha, before any magnitude.

        For algorithms whose change does not depend on the weight; Mismatch if the sizes do not agree.
        """
        return replace(self, magnitude=None).change(torch.zeros(shape), 1.0, lora_alpha)

    def change(self, weight: Tensor, lora_weight: float = 1.0, lora_alpha: LoraAlpha = "use") -> Tensor:
        """What to add to `weight` at this weight, fp32; exactly 0 at weight 0.

        DoRA: the length of W + weight * change is set, as in peft. OFT and BOFT: each rotation is moved
        towards 1, as in LyCORIS. Mismatch if the sizes do not agree.
        """
        weight = weight.detach().float()
        if not lora_weight:
            return torch.zeros_like(weight)
        t = {name: tensor.to(weight.device, torch.float32) for name, tensor in self.tensors.items()}
        t |= {name: self.tensors[name] for name in self.tensors if name == "on_input"}  # also on meta
        if self.algorithm in ("oft", "boft"):
            rotate = _oft if self.algorithm == "oft" else _boft
            return rotate(t, weight, lora_weight, (self.alpha or 0.0) * weight.shape[0])
        change = CHANGES[self.algorithm](t, weight)
        if change.numel() != weight.numel() or change.shape[0] != weight.shape[0]:
            raise Mismatch(_no_fit(f"of {tuple(change.shape)}", weight))
        change = change.reshape(weight.shape) * (self.scale(lora_alpha) * lora_weight)
        if self.magnitude is None:
            return change
        return rescaled(weight + change, self.magnitude.to(weight.device, torch.float32)) - weight

    def bias_change(
        self, bias: Tensor | None, lora_weight: float = 1.0, lora_alpha: LoraAlpha = "use"
    ) -> Tensor | None:
        """What to add to the layer's bias (None: it has none) at this weight, fp32; None for nothing."""
        t = {name: tensor.detach().float() for name, tensor in self.tensors.items()}
        terms = []
        if "bias" in t:
            terms.append(t["bias"])
        if "up_bias" in t:
            terms.append(t["up_bias"] * self.scale(lora_alpha))
        if "whole_bias" in t:
            terms.append(t["whole_bias"] if bias is None else t["whole_bias"] - bias.detach().float().cpu())
        if "gain" in t and bias is not None and not t["on_input"].any():
            terms.append(bias.detach().float().cpu() * (t["gain"].flatten() - 1))
        return sum(terms[1:], terms[0]).flatten() * lora_weight if terms else None

    def check(self, shape: torch.Size | tuple[int, ...]) -> None:
        """Mismatch if this is no change of a weight of this shape; only sizes are computed."""
        weight = torch.empty(shape, device="meta")
        try:
            self.change(weight)
        except (RuntimeError, IndexError, ValueError) as error:
            sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors.items())
            raise Mismatch(_no_fit(f"with {sizes}", weight)) from error

    def apply(self, weight: Tensor, lora_weight: float = 1.0, lora_alpha: LoraAlpha = "use") -> Tensor:
        """`weight` with this change at this weight in it, fp32."""
        return weight.detach().float() + self.change(weight, lora_weight, lora_alpha)


def _no_fit(what: str, weight: Tensor) -> str:
    size = tuple(weight.shape)
    return f"a change {what} does not fit a weight of {size}: the adapter was made for another model"


def rescaled(weight: Tensor, magnitude: Tensor) -> Tensor:
    """`weight` with the lengths in `magnitude`: of its rows (one per output), else of its columns."""
    side = 0 if magnitude.shape[0] == weight.shape[0] else 1
    if magnitude.numel() != weight.shape[side]:
        raise Mismatch(_no_fit(f"with lengths of {tuple(magnitude.shape)}", weight))
    others = [axis for axis in range(weight.ndim) if axis != side]
    lengths = weight.square().sum(others, keepdim=True).sqrt() + torch.finfo(weight.dtype).eps
    return weight * (magnitude.reshape(lengths.shape) / lengths)


def _tucker(core: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """core (i, j, ...), outer (i, out), inner (j, in) -> (out, in, ...)."""
    return torch.einsum("ij...,io,jn->on...", core, outer, inner)


def _lora(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    up, down = t["up"], t["down"]
    if "mid" in t:
        return _tucker(t["mid"], up.flatten(1).T, down.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def _loha(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    if "t1" in t:
        return _tucker(t["t1"], t["w1_a"], t["w1_b"]) * _tucker(t["t2"], t["w2_a"], t["w2_b"])
    return (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])


def _lokr(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    first = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    if "w2" in t:
        second = t["w2"]
    elif "t2" in t:
        second = _tucker(t["t2"], t["w2_a"], t["w2_b"])
    else:
        second = (t["w2_a"] @ t["w2_b"].flatten(1)).view(t["w2_a"].shape[0], *t["w2_b"].shape[1:])
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return torch.kron(first, second.contiguous())  # it views both as other shapes


def _glora(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    low = {"up": t["b1"], "down": t["b2"], **({"mid": t["bm"]} if "bm" in t else {})}
    square = t["a1"].flatten(1) @ t["a2"].flatten(1)
    return _lora(low, weight).reshape(weight.shape) + torch.einsum("oi...,ij->oj...", weight, square)


def _ia3(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    factor = t["weight"] if "weight" in t else t["gain"] - 1
    sides = (1, -1) if t["on_input"].any() else (-1, 1)
    return weight * factor.reshape(*sides, *[1] * (weight.ndim - 2))


def _full(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    return t["diff"] if "diff" in t else torch.zeros_like(weight)


def _whole(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    return t["weight"].reshape(weight.shape) - weight if "weight" in t else torch.zeros_like(weight)


CHANGES: dict[Algorithm, Callable[[Mapping[str, Tensor], Tensor], Tensor]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "ia3": _ia3,
    "full": _full,
    "norm": _full,
    "whole": _whole,
}
"""The change of a weight by algorithm, before alpha."""


def _rotations(blocks: Tensor, constraint: float) -> Tensor:
    """Cayley's rotations (..., n, n) of any square blocks; `constraint` bounds their distance from 1."""
    skew = blocks - blocks.transpose(-1, -2)
    if constraint > 0:
        skew = skew * (constraint / (skew.norm() + 1e-8)).clamp(max=1.0)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    return (one + skew) @ torch.linalg.inv(one - skew)


def _oft(t: Mapping[str, Tensor], weight: Tensor, lora_weight: float, constraint: float) -> Tensor:
    """blocks (k, n, n) turn the outputs of `weight`, n at a time."""
    turn = (
        _rotations(t["blocks"], constraint) - torch.eye(t["blocks"].shape[-1], device=weight.device)
    ) * lora_weight
    split = weight.unflatten(0, t["blocks"].shape[:2])
    turned = weight + torch.einsum("knm,kn...->km...", turn, split).flatten(0, 1)
    return _stretched(t, turned) - weight


def _boft(t: Mapping[str, Tensor], weight: Tensor, lora_weight: float, constraint: float) -> Tensor:
    """blocks (m, k, n, n): stage i turns outputs that lie 2**i * n / 2 apart."""
    size = t["blocks"].shape[-1]
    one = torch.eye(size, device=weight.device)
    turned = weight
    for stage, rotation in enumerate(_rotations(t["blocks"], constraint)):
        apart = 2**stage * size // 2
        paired = turned.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        paired = torch.einsum("kij,kj...->ki...", one + lora_weight * (rotation - one), paired)
        turned = paired.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return _stretched(t, turned) - weight


def _stretched(t: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    if "rescale" not in t:
        return weight
    return weight * t["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
