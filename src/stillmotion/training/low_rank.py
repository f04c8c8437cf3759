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
from stillmotion.errors import Mismatch
from stillmotion.lora_model import Lora
from stillmotion.training.config import DomainAdapterConfig, MotionLoraConfig
from stillmotion.training.config.images import LowRankConfig

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
    """LoRAs on several networks by part (unet, text_encoder, text_encoder_2, motion), all attached.

    Fresh ones, that change nothing yet, or those of the file `initial_lora`.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        wanted: Wanted,
        config: LowRankConfig | DomainAdapterConfig | MotionLoraConfig,
    ) -> None:
        self.modules: dict[str, dict[str, LowRank]] = {}
        self.adaptations: dict[str, Adaptation] = {}
        for number, (part, network) in enumerate(networks.items()):
            device = next(network.parameters()).device
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + number)
                made = fresh(network, wanted, config.rank, config.alpha, config.dropout).to(device)
            self.modules[part] = {path.replace("/", "."): module for path, module in made.items()}
            self.adaptations[part] = Adaptation(network, self.modules[part], part=part)
        if config.initial_lora:
            self._begin_from(Lora.load(config.initial_lora))

    def parameters(self) -> dict[str, Parameter]:
        """By "part/layer.down" and "part/layer.up"."""
        return {
            f"{part}/{path}.{name}": parameter
            for part, modules in self.modules.items()
            for path, module in modules.items()
            for name, parameter in module.named_parameters()
        }

    def _begin_from(self, lora: Lora) -> None:
        """Take over its weights; layers that it does not change stay fresh."""
        given = {(part, path): f for part, layers in lora.parts.items() for path, f in layers.items()}
        for part, modules in self.modules.items():
            for path, module in modules.items():
                factors = given.pop((part, _stored(part, path)), None)
                if factors is not None:
                    _take(factors, module, f"{lora.name} at {part} {path}")
        if given:
            part, path = next(iter(given))
            raise Mismatch(
                f"{lora.name} changes {len(given)} layers that are not trained here, {part} {path} for one: "
                "train these too (feed_forward, conv, train_text_encoder), or leave initial_lora out."
            )

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


@torch.no_grad()
def _take(factors: Factors, module: LowRank, where: str) -> None:
    """Its numbers, at the scale of this module."""
    tensors, rank = factors.tensors, module.down.shape[0]
    plain = factors.algorithm == "lora" and tensors.keys() == {"down", "up"} and factors.magnitude is None
    if not plain or factors.rank != rank:
        kind = "plain LoRA" if plain else factors.algorithm
        raise Mismatch(
            f"{where} is a {kind} of rank {factors.rank}, but a plain LoRA of rank {rank} is trained here: "
            "set rank to that of the file, or leave initial_lora out."
        )
    module.down.copy_(tensors["down"].reshape(module.down.shape))
    module.up.copy_((tensors["up"] * (factors.scale() / module.scale)).reshape(module.up.shape))


def _stored(part: str, path: str) -> str:
    """The path that files have: transformers 5.6 took `text_model.` out of CLIPTextModel."""
    wrapped = not part.startswith("text") or path.startswith("text_model.")
    return path if wrapped else f"text_model.{path}"
