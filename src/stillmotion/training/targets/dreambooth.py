"""DreamBooth: one subject from a few images under a rare word; the base keeps what it knew of its kind.

loss = L2 on the subject's images + prior_weight * L2 on images of the class      (Ruiz et al. 2022)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.datasets.images import find_images
from stillmotion.datasets.report import Report
from stillmotion.training.config.images import DreamBoothConfig
from stillmotion.training.data.class_images import class_images
from stillmotion.training.data.images import MAX_SAMPLES, ImageDataset
from stillmotion.training.denoiser import Denoiser, image_loss
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.trainable import make_trainable

CLASS_STREAM = "class"
"""name of the random numbers of the class images"""


class DreamBoothTarget:
    """The base with a LoRA on it, or itself in training; images of the subject and of its class."""

    def __init__(
        self, config: DreamBoothConfig, accelerator: Accelerator, log: Callable[[str], None]
    ) -> None:
        self.config, report = config, Report()
        # before models load: a wrong path is said at once
        found = find_images(config.instance_images, report, [config.instance_prompt])
        self.denoiser = Denoiser(config, accelerator.device, rounded=not config.trains_whole_model)
        self.subject = ImageDataset(config, found, report, self.denoiser, accelerator, log)
        self.prior = self._prior(report, accelerator, log)  # drawn by the base before anything is on it
        self.trainable = make_trainable(config, self.denoiser, self.subject.captions())
        self.artifact = self.trainable.artifact
        self._advise(log)

    def data_key(self) -> str:
        """Changes with the images of both kinds."""
        return " ".join(dataset.key() for dataset in self._datasets())

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA's, or the whole model's."""
        return self.trainable.parameters()

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """One image of the subject per draw and, with a class, one of it too, weighted by PRIOR_WEIGHT."""
        samples = [self.subject.sample(rng) for rng in rngs]
        if self.prior is None:
            return image_loss(self.denoiser, samples)
        others = [self.prior.sample(rng.stream(CLASS_STREAM)) for rng in rngs]
        shares = [1 / len(rngs)] * len(rngs) + [self.config.prior_weight / len(rngs)] * len(rngs)
        return image_loss(self.denoiser, samples + others, shares)

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """A LoRA in two layouts, or a model as a folder and as one file."""
        self.trainable.save(output, weights, step)

    def samples(self, folder: Path, step: int) -> Path | None:
        """A row of stills for the subject and one for the class, always from the same noise."""
        config = self.config
        own = [prompt for prompt in (config.instance_prompt, config.class_prompt) if prompt]
        prompts, without = config.validation_prompts or own, self.trainable.without()
        with self.trainable.eval_mode():
            return sample_sheet(self.denoiser, prompts, folder, step, MAX_SAMPLES, without=without)

    def _datasets(self) -> list[ImageDataset]:
        return [dataset for dataset in (self.subject, self.prior) if dataset is not None]

    def _prior(
        self, report: Report, accelerator: Accelerator, log: Callable[[str], None]
    ) -> ImageDataset | None:
        if self.config.class_prompt is None:
            return None
        folder = class_images(self.config, self.denoiser, accelerator, log)
        found = find_images(folder, report, [self.config.class_prompt])
        once = [(item, 1) for item, _ in found]
        return ImageDataset(self.config, once, report, self.denoiser, accelerator, log)

    def _advise(self, log: Callable[[str], None]) -> None:
        kept = f" and {len(self.prior)} of the class" if self.prior else ""
        log(f"{len(self.subject)} images of the subject{kept}, {self.trainable}, {self.denoiser}.")
        for note in self.subject.size_notes():
            log(note)
        if self.prior is None:
            log("Note: without --class-prompt everything of its kind will come to look like the subject.")
