"""Optimizers on one flat fp32 vector of weights; their state is flat vectors too.

Muon (torch's own) orthogonalises the step of every matrix, which on small budgets learns a multiple of what
AdamW does; vectors (norms, biases) stay with AdamW. Both take the same learning rate: Muon's steps are scaled
to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from stillmotion.errors import TrainingError
from stillmotion.runtime.precision import NoEmulatedBf16
from stillmotion.training.config import TrainConfig
from stillmotion.training.engine.flat_params import FlatParameters


class AdamW:
    """AdamW on the whole vector."""

    def __init__(self, flat: FlatParameters, config: TrainConfig) -> None:
        self.flat = flat
        self.optimizer = torch.optim.AdamW(
            [flat.weights],
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
            foreach=False,
        )

    def step(self, rate: float) -> None:
        """One step along `flat.grad`."""
        self.flat.weights.grad = self.flat.grad
        _step(self.optimizer, rate)

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs."""
        return {f"adam.{name}": value for name, value in self.optimizer.state[self.flat.weights].items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The state that `state` gave."""
        named = {name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")}
        device = self.flat.weights.device
        self.optimizer.state[self.flat.weights] = {
            name: value if name == "step" else value.to(device) for name, value in named.items()
        }


class Muon:
    """Muon on the matrices, AdamW on the vectors among them, all as views of the flat vectors."""

    def __init__(self, flat: FlatParameters, config: TrainConfig) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise TrainingError(
                f"optimizer is muon, which torch {torch.__version__} does not have: install torch 2.9 or "
                "newer, or use --optimizer adamw."
            )
        self.flat = flat
        self.views = {name: Parameter(view) for name, view in flat.named().items()}
        matrices = [view for view in self.views.values() if view.ndim >= 2]
        vectors = [view for view in self.views.values() if view.ndim < 2]
        if any(view.ndim > 2 for view in matrices):
            raise TrainingError("optimizer is muon, but some trained weights are convolutions: use adamw.")
        decay = config.weight_decay
        self.optimizers = [
            torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(vectors, betas=(config.adam_beta1, config.adam_beta2), weight_decay=decay),
        ]

    def step(self, rate: float) -> None:
        """One step along `flat.grad`."""
        for view, part in zip(self.views.values(), self.flat.named(self.flat.grad).values(), strict=True):
            view.grad = part
        with NoEmulatedBf16():
            for optimizer in self.optimizers:
                _step(optimizer, rate)

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, by the name of the weight."""
        return {
            f"muon.{name}/{key}": value
            for name, view in self.views.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(view, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The state that `state` gave."""
        for key, value in tensors.items():
            if key.startswith("muon."):
                name, _, field = key.removeprefix("muon.").partition("/")
                view = self.views[name]
                device = "cpu" if field == "step" else view.device
                self.optimizers[view.ndim < 2].state[view][field] = value.to(device)


def make_optimizer(flat: FlatParameters, config: TrainConfig) -> AdamW | Muon:
    """The optimizer that the config names."""
    return (Muon if config.optimizer == "muon" else AdamW)(flat, config)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
