"""The style LoRA: small changes of the UNet's layers, learnt from images with captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.datasets.images import find_images
from stillmotion.datasets.report import Report
from stillmotion.training.config.images import LoraTrainConfig
from stillmotion.training.data.images import MAX_SAMPLES, ImageDataset
from stillmotion.training.denoiser import Denoiser, image_loss
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.trainable import LoraTrainable, make_trainable


class LoraTarget:
    """The base, frozen, with a LoRA in training on it."""

    artifact = LoraTrainable.artifact

    def __init__(self, config: LoraTrainConfig, accelerator: Accelerator, log: Callable[[str], None]) -> None:
        self.config, report = config, Report()
        found = find_images(config.images, report)  # before models load: a wrong path is said at once
        self.denoiser = Denoiser(config, accelerator.device)
        self.dataset = ImageDataset(config, found, report, self.denoiser, accelerator, log)
        self.trainable = make_trainable(config, self.denoiser, self.dataset.captions())
        log(f"{len(self.dataset)} images, {self.trainable}, {self.denoiser}.")
        for note in self.dataset.size_notes() + self.dataset.caption_notes():
            log(note)

    def data_key(self) -> str:
        """Changes with the images and their captions."""
        return self.dataset.key()

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA's."""
        return self.trainable.parameters()

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """L2 (optionally min-SNR weighted) on the noise or velocity of one image per draw."""
        return image_loss(self.denoiser, [self.dataset.sample(rng) for rng in rngs])

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """`lora.safetensors` in kohya's layout, `lora-peft.safetensors` in diffusers'."""
        self.trainable.save(output, weights, step)

    def samples(self, folder: Path, step: int) -> Path | None:
        """A row of stills per prompt, with the LoRA and without, always from the same noise."""
        prompts = self.config.validation_prompts or self.dataset.prompts()
        with self.trainable.eval_mode():
            without = self.trainable.without()
            return sample_sheet(self.denoiser, prompts, folder, step, MAX_SAMPLES, without=without)
