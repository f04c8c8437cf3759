"""What trains on images and what comes out of it: a LoRA beside the base, or the whole model.

LoraTrainable     lora.safetensors (kohya), lora-peft.safetensors (diffusers)
ModelTrainable    model/ (a diffusers folder), model.safetensors (one file)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.atomic import durable, sweep
from stillmotion.checkpoints.formats import MODEL_FOLDER
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.training.config.images import LowRankConfig
from stillmotion.training.denoiser import Denoiser
from stillmotion.training.samples import Switch
from stillmotion.training.targets.lora_metadata import lora_metadata
from stillmotion.training.targets.lora_params import LoraParameters, every_layer, transformer_layers


class Trainable(Protocol):
    """Weights that train on a denoiser's networks, and the files they end in."""

    artifact: str

    def parameters(self) -> Mapping[str, Parameter]:
        """By the name they have in checkpoints."""

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """Writes the products, each whole or not at all."""

    def eval_mode(self) -> AbstractContextManager[None]:
        """Within it nothing is left out (dropout), as when the product is used."""

    def without(self) -> Switch | None:
        """What switches the trained weights off for samples of the base alone; None if nothing can."""


class LoraTrainable:
    """A fresh LoRA on the UNet and, if wanted, on the text encoders; the base stays as it is."""

    artifact = "lora.safetensors"

    def __init__(self, config: LowRankConfig, denoiser: Denoiser, captions: Iterable[str] = ()) -> None:
        wanted = every_layer if config.conv else transformer_layers
        networks = {part: net.to(denoiser.dtype) for part, net in trained_networks(config, denoiser).items()}
        self.lora_params = LoraParameters(networks, wanted, config)
        self.config, self.denoiser, self.captions = config, denoiser, list(captions)

    def __str__(self) -> str:
        return f"a LoRA of {self.lora_params.size / 1e6:.1f} M weights"

    def parameters(self) -> Mapping[str, Parameter]:
        """All factors."""
        return self.lora_params.parameters()

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """The same LoRA in two layouts."""
        lora = self.lora_params.lora(weights, output.name)
        facts = lora_metadata(self.config, self.denoiser, self.captions, step)
        lora.save(output / self.artifact, "kohya", metadata=facts)
        lora.save(output / "lora-peft.safetensors", "peft", metadata=facts)

    def eval_mode(self) -> AbstractContextManager[None]:
        """Dropout off."""
        return self.lora_params.eval_mode()

    def without(self) -> Switch | None:
        """The LoRA off."""
        return self.lora_params.off


class ModelTrainable:
    """All weights of the UNet and, if wanted, of the text encoders."""

    artifact = "model.safetensors"

    def __init__(self, config: LowRankConfig, denoiser: Denoiser) -> None:
        self.config, self.denoiser = config, denoiser
        self.networks = trained_networks(config, denoiser)

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters().values())
        return f"all {count / 1e6:.1f} M weights of {' and '.join(self.networks)}"

    def parameters(self) -> Mapping[str, Parameter]:
        """By "part/name"."""
        return {
            f"{part}/{name}": parameter
            for part, network in self.networks.items()
            for name, parameter in network.named_parameters()
        }

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """The pipeline as the base had it, with these weights: as a folder and as one file."""
        pipeline = self.denoiser.pipeline
        training = pipeline.scheduler
        sweep(output)
        _set_aside_parts(output / "model")
        with swapped_weights(self.parameters(), weights):
            pipeline.scheduler = self._scheduler()
            try:
                with durable(output / "model", MODEL_FOLDER) as folder:
                    pipeline.save_pretrained(folder)
                save_single_file(pipeline, output / self.artifact)
            finally:
                pipeline.scheduler = training

    def eval_mode(self) -> AbstractContextManager[None]:
        """Nothing is left out in training either."""
        return nullcontext()

    def without(self) -> Switch | None:
        """The base itself is what has changed."""
        return None

    def _scheduler(self) -> object:
        """The base's own, unless the config says that the noise is another one."""
        if self.config.schedule.said():
            return self.denoiser.pipeline.scheduler
        return self.denoiser.base_scheduler


def _set_aside_parts(folder: Path) -> None:
    """A folder of which parts were removed is no model any more and is not replaced: it gets another name."""
    if folder.is_dir() and not (folder / "model_index.json").exists():
        free = (folder.with_name(f"{folder.name}.damaged{number or ''}") for number in count())
        folder.rename(next(name for name in free if not name.exists()))


def make_trainable(
    config: LowRankConfig, denoiser: Denoiser, captions: Iterable[str] = ()
) -> LoraTrainable | ModelTrainable:
    """What the config wants to train; text is encoded with gradients from here on if it trains."""
    denoiser.text.requires_grad = config.train_text_encoder
    if config.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    if config.trains_whole_model:
        return ModelTrainable(config, denoiser)
    return LoraTrainable(config, denoiser, captions)


def trained_networks(config: LowRankConfig, denoiser: Denoiser) -> dict[str, nn.Module]:
    """The UNet and, if the config says so, the text encoders."""
    texts = {name: part for name, part in denoiser.parts.items() if name.startswith("text_encoder")}
    return {"unet": denoiser.unet} | (texts if config.train_text_encoder else {})


@contextmanager
def swapped_weights(parameters: Mapping[str, Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters hold copies of these weights for one block."""
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name].detach().clone()
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]
