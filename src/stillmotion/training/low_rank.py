"""LoRAs in training: fresh ones on the wanted layers, their weights by name, and the Lora that comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.adapt.attach import Adaptation, fresh
from stillmotion.adapt.factors import Factors
from stillmotion.adapt.layers import LowRank
from stillmotion.lora_model import Lora

Wanted = Callable[[str, nn.Module], bool]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "mlp.fc1", "mlp.fc2", "proj_in", "proj_out")


def transformer_layers(path: str, layer: nn.Module) -> bool:
    """Attention and feed-forward of transformers, in UNets, text encoders and motion modules."""
    return path.endswith(ATTENTION + FEED_FORWARD)


def attention_layers(path: str, layer: nn.Module) -> bool:
    """The four projections of every attention: what AnimateDiff's motion LoRAs and domain adapter change."""
    return path.endswith(ATTENTION)


def every_layer(path: str, layer: nn.Module) -> bool:
    """Transformers and the 3x3 convolutions of resnets and samplers (LoCon)."""
    return transformer_layers(path, layer) or (
        isinstance(layer, nn.Conv2d) and (".resnets." in path or "samplers." in path)
    )


class LowRanks:
    """Fresh LoRAs on several networks by part (unet, text_encoder, text_encoder_2, motion), all attached."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        wanted: Wanted,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.modules: dict[str, dict[str, LowRank]] = {}
        self.adaptations: dict[str, Adaptation] = {}
        for number, (part, network) in enumerate(networks.items()):
            device = next(network.parameters()).device
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + number)
                made = fresh(network, wanted, rank, alpha, dropout).to(device)
            self.modules[part] = {path.replace("/", "."): module for path, module in made.items()}
            self.adaptations[part] = Adaptation(network, self.modules[part], part=part)

    def parameters(self) -> dict[str, Parameter]:
        """By "part/layer.down" and "part/layer.up"."""
        return {
            f"{part}/{path}.{name}": parameter
            for part, modules in self.modules.items()
            for path, module in modules.items()
            for name, parameter in module.named_parameters()
        }

    @property
    def size(self) -> int:
        """Numbers in all of them together."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def lora(self, weights: Mapping[str, Tensor], name: str = "") -> Lora:
        """The LoRA that these weights (by the names of `parameters`) are; paths as in files."""
        return Lora(
            {
                part: {
                    _stored(part, path): Factors(
                        "lora",
                        {end: weights[f"{part}/{path}.{end}"].detach().cpu() for end in ("down", "up")},
                        module.alpha,
                    )
                    for path, module in modules.items()
                }
                for part, modules in self.modules.items()
            },
            name,
        )

    @contextmanager
    def at(self, strength: float, *parts: str) -> Iterator[None]:
        """These parts (all, if none is named) act so strongly for one block."""
        chosen = [self.adaptations[part] for part in (parts or self.adaptations)]
        before = [adaptation.strength for adaptation in chosen]
        for adaptation in chosen:
            adaptation.strength = strength
        try:
            yield
        finally:
            for adaptation, usual in zip(chosen, before, strict=True):
                adaptation.strength = usual

    @contextmanager
    def resting(self) -> Iterator[None]:
        """No dropout for one block, as when they are used."""
        modules = [module for part in self.modules.values() for module in part.values()]
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module in modules:
                module.train()

    def detach(self) -> None:
        """Take them off; the networks are what they were before."""
        for adaptation in self.adaptations.values():
            adaptation.detach()


def _stored(part: str, path: str) -> str:
    """The path that files have: transformers 5.6 took `text_model.` out of CLIPTextModel."""
    wrapped = not part.startswith("text") or path.startswith("text_model.")
    return path if wrapped else f"text_model.{path}"
