"""LoRAs in training: fresh ones on the wanted layers, their weights by name, and the Lora that comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.attachments.lora import LoraAttachment, attach_layers, new_lora_layers
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.errors import Mismatch
from stillmotion.lora.deltas import LayerDelta
from stillmotion.lora.layers import LoraLayer
from stillmotion.training.config import DomainAdapterConfig, MotionLoraConfig
from stillmotion.training.config.images import LowRankConfig

LayerFilter = Callable[[str, nn.Module], bool]

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


class LoraParameters:
    """LoRAs on several networks by part (unet, text_encoder, text_encoder_2, motion), all attached.

    Fresh ones, that change nothing yet, or those of the file `initial_lora`.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        wanted: LayerFilter,
        config: LowRankConfig | DomainAdapterConfig | MotionLoraConfig,
    ) -> None:
        self.modules: dict[str, dict[str, LoraLayer]] = {}
        self.attachments: dict[str, LoraAttachment] = {}
        for number, (part, network) in enumerate(networks.items()):
            device = next(network.parameters()).device
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + number)
                made = new_lora_layers(network, wanted, config.rank, config.alpha, config.dropout).to(device)
            self.modules[part] = {
                path.replace("/", "."): module
                for path, module in made.items()
                if isinstance(module, LoraLayer)
            }
            self.attachments[part] = attach_layers(network, self.modules[part], part=part)
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
                delta = given.pop((part, _stored(part, path)), None)
                if delta is not None:
                    copy_from(delta, module, f"{lora.name} at {part} {path}")
        if given:
            part, path = next(iter(given))
            raise Mismatch(
                f"{lora.name} changes {len(given)} layers that are not trained here, {part} {path} for one: "
                "train these too (feed_forward, conv, train_text_encoder), or leave initial_lora out."
            )

    @property
    def size(self) -> int:
        """Parameters of all of them together."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def lora(self, weights: Mapping[str, Tensor], name: str = "") -> Lora:
        """The LoRA that these weights (by the names of `parameters`) are; paths as in files."""
        return Lora(
            {
                part: {
                    _stored(part, path): LayerDelta(
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
    def scaled(self, weight: float, *parts: str) -> Iterator[None]:
        """These parts (all, if none is named) act so strongly for one block."""
        chosen = [self.attachments[part] for part in (parts or self.attachments)]
        before = [attachment.weight for attachment in chosen]
        for attachment in chosen:
            attachment.weight = weight
        try:
            yield
        finally:
            for attachment, usual in zip(chosen, before, strict=True):
                attachment.weight = usual

    def off(self) -> AbstractContextManager[None]:
        """None of them acts for one block."""
        return self.scaled(0.0)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
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
        for attachment in self.attachments.values():
            attachment.detach()


@torch.no_grad()
def copy_from(delta: LayerDelta, module: LoraLayer, where: str) -> None:
    """Its numbers, at the scale of this module."""
    tensors, rank = delta.tensors, module.down.shape[0]
    is_plain = delta.algorithm == "lora" and tensors.keys() == {"down", "up"} and delta.magnitude is None
    if not is_plain or delta.rank != rank:
        kind = "plain LoRA" if is_plain else delta.algorithm
        raise Mismatch(
            f"{where} is a {kind} of rank {delta.rank}, but a plain LoRA of rank {rank} is trained here: "
            "set rank to that of the file, or leave initial_lora out."
        )
    module.down.copy_(tensors["down"].reshape(module.down.shape))
    module.up.copy_((tensors["up"] * (delta.scale() / module.scale)).reshape(module.up.shape))


def _stored(part: str, path: str) -> str:
    """The path that files have: transformers 5.6 took `text_model.` out of CLIPTextModel."""
    wrapped = not part.startswith("text") or path.startswith("text_model.")
    return path if wrapped else f"text_model.{path}"
