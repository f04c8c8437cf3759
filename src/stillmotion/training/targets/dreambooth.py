"""DreamBooth: one subject from a few pictures under a rare word; the base keeps what it knew of its kind.

loss = L2 on the subject's pictures + prior_weight * L2 on pictures of the class      (Ruiz et al. 2022)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.data.pictures import find_pictures
from stillmotion.data.report import Report
from stillmotion.training.album import SHOWN, Album, picture_loss
from stillmotion.training.config.images import DreamBoothConfig
from stillmotion.training.denoise import Denoiser
from stillmotion.training.draws import Draw
from stillmotion.training.prior import class_pictures
from stillmotion.training.targets import Loss
from stillmotion.training.trainees import make_trainee
from stillmotion.training.validation import sample_sheet

CLASS = "class"
"""series of draws for the pictures of the class"""


class DreamBoothTarget:
    """The base with a LoRA on it, or itself in training; pictures of the subject and of its class."""

    def __init__(
        self, config: DreamBoothConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.config, report = config, Report()
        # before models load: a wrong path is said at once
        found = find_pictures(config.instance_images, report, [config.instance_prompt])
        self.denoiser = Denoiser(config, accelerator.device, rounded=not config.trains_whole_model)
        self.subject = Album(config, found, report, self.denoiser, accelerator, say)
        self.prior = self._prior(report, accelerator, say)  # drawn by the base before anything is on it
        self.trainee = make_trainee(config, self.denoiser, self.subject.captions())
        self.product = self.trainee.product
        self._advise(say)

    def data_key(self) -> str:
        """Changes with the pictures of both kinds."""
        return " ".join(album.key() for album in self._albums())

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA's, or the whole model's."""
        return self.trainee.parameters()

    def loss(self, draws: Sequence[Draw]) -> Loss:
        """One picture of the subject per draw and, with a class, one of it too, weighted by PRIOR_WEIGHT."""
        samples = [self.subject.sample(draw) for draw in draws]
        if self.prior is None:
            return picture_loss(self.denoiser, samples)
        others = [self.prior.sample(draw.other(CLASS)) for draw in draws]
        shares = [1 / len(draws)] * len(draws) + [self.config.prior_weight / len(draws)] * len(draws)
        return picture_loss(self.denoiser, samples + others, shares)

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """A LoRA in two layouts, or a model as a folder and as one file."""
        self.trainee.save(output, weights, step)

    def samples(self, folder: Path, step: int) -> Path | None:
        """A row of stills for the subject and one for the class, always from the same noise."""
        config = self.config
        own = [prompt for prompt in (config.instance_prompt, config.class_prompt) if prompt]
        with self.trainee.resting():
            return sample_sheet(self.denoiser, config.validation_prompts or own, folder, step, SHOWN)

    def _albums(self) -> list[Album]:
        return [album for album in (self.subject, self.prior) if album is not None]

    def _prior(self, report: Report, accelerator: Accelerator, say: Callable[[str], None]) -> Album | None:
        if self.config.class_prompt is None:
            return None
        folder = class_pictures(self.config, self.denoiser, accelerator, say)
        found = find_pictures(folder, report, [self.config.class_prompt])
        once = [(item, 1) for item, _ in found]
        return Album(self.config, once, report, self.denoiser, accelerator, say)

    def _advise(self, say: Callable[[str], None]) -> None:
        kept = f" and {len(self.prior)} of the class" if self.prior else ""
        say(f"{len(self.subject)} pictures of the subject{kept}, {self.trainee}, {self.denoiser}.")
        for note in self.subject.size_notes():
            say(note)
        if self.prior is None:
            say("Note: without --class-prompt everything of its kind will come to look like the subject.")
