"""The style LoRA: small changes of the UNet's layers, learnt from pictures with captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.data.pictures import find_pictures
from stillmotion.data.report import Report
from stillmotion.training.album import SHOWN, Album, picture_loss
from stillmotion.training.config.images import LoraTrainConfig
from stillmotion.training.denoise import Denoiser
from stillmotion.training.draws import Draw
from stillmotion.training.targets import Loss
from stillmotion.training.trainees import LoraTrainee, make_trainee
from stillmotion.training.validation import sample_sheet


class LoraTarget:
    """The base, frozen, with a LoRA in training on it."""

    product = LoraTrainee.product

    def __init__(self, config: LoraTrainConfig, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        self.config, report = config, Report()
        found = find_pictures(config.images, report)  # before models load: a wrong path is said at once
        self.denoiser = Denoiser(config, accelerator.device)
        self.album = Album(config, found, report, self.denoiser, accelerator, say)
        self.trainee = make_trainee(config, self.denoiser, self.album.captions())
        say(f"{len(self.album)} pictures, {self.trainee}, {self.denoiser}.")
        for note in self.album.size_notes() + self.album.caption_notes():
            say(note)

    def data_key(self) -> str:
        """Changes with the pictures and their captions."""
        return self.album.key()

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA's."""
        return self.trainee.parameters()

    def loss(self, draws: Sequence[Draw]) -> Loss:
        """L2 (optionally min-SNR weighted) on the noise or velocity of one picture per draw."""
        return picture_loss(self.denoiser, [self.album.sample(draw) for draw in draws])

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """`lora.safetensors` in kohya's layout, `lora-peft.safetensors` in diffusers'."""
        self.trainee.save(output, weights, step)

    def samples(self, folder: Path, step: int) -> Path | None:
        """A row of stills per prompt, always from the same noise."""
        prompts = self.config.validation_prompts or self.album.prompts()
        with self.trainee.resting():
            return sample_sheet(self.denoiser, prompts, folder, step, SHOWN)
