"""The recipe's optimizer: Muon for the weights that mix many features, AdamW for the rest.

With bf16 an hour of either costs the same, and Muon's orthogonal steps learn more in it. Without, such a
step takes twice as long as both passes of a batch of 8: there AdamW alone does more. torch's Muon takes
matrices only, so a convolution (out, in, kh, kw) is stepped through its (out, in*kh*kw) view.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stillmotion.runtime.precision import NoEmulatedBf16, best_dtype


def low_precision() -> torch.autocast:
    """bf16 where the processor computes it; one that emulates it (AVX2: 80 times slower) stays in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=best_dtype("cpu") == torch.bfloat16)


class Muon2:
    """Muon on views of all weights of two and more dimensions, AdamW on the rest, behind one `step`.

    `learning_rate` is AdamW's; Muon's updates are scaled to the same size (the rule of Moonlight: 0.2
    sqrt(max(n, m))). Without `muon` everything is AdamW's.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        weight_decay: float = 0.01,
        muon: bool = True,
    ):
        named = [(name, p) for name, p in named if p.requires_grad]
        mixing = [
            (n, p)
            for n, p in named
            if muon and p.ndim >= 2 and not any(part in n for part in ("conv_in", "conv_out", "emb"))
        ]
        names = {n for n, _ in mixing}
        self.pairs = [(p, nn.Parameter(p.data.view(p.shape[0], -1))) for _, p in mixing]
        rest = [p for n, p in named if n not in names]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
        }
        if self.pairs:
            views = [view for _, view in self.pairs]
            self.parts["muon"] = torch.optim.Muon(
                views, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )

    def step(self, learning_rate: float) -> None:
        for optimizer in self.parts.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        for p, view in self.pairs:
            view.grad = None if p.grad is None else p.grad.view(p.shape[0], -1)
        with NoEmulatedBf16():
            for optimizer in self.parts.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        for p, _ in self.pairs:
            p.grad = None

    def state_dict(self) -> dict:
        return {name: optimizer.state_dict() for name, optimizer in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Goes on with a state of the same optimizers; with that of others it starts afresh, and says so."""
        if state.keys() != self.parts.keys():
            print(f"the state is of {sorted(state)}: {sorted(self.parts)} start afresh", flush=True)
            return
        for name, optimizer in self.parts.items():
            optimizer.load_state_dict(state[name])


class Average:
    """Exponential moving average of a module's parameters, with a warm-up so that early steps do not
    linger.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_([self.shadow[n] for n in names], [parameters[n].data for n in names], 1 - decay)

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state dict with the averaged parameters in it."""
        return {**module.state_dict(), **self.shadow}
