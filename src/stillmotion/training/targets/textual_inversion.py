"""Textual inversion (Gal et al. 2022): vectors of a new word for the text encoder; the model is frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from stillmotion.atomic import durable
from stillmotion.checkpoints.embeddings import WORD
from stillmotion.datasets.images import find_images
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item
from stillmotion.diffusion.text import normalize_tokens
from stillmotion.training.config.images import TextualInversionConfig
from stillmotion.training.data.images import MAX_SAMPLES, ImageDataset
from stillmotion.training.denoiser import Denoiser, image_loss
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.learned_embedding import LearnedEmbedding

TEMPLATES = {
    "object": (
        "a photo of a {}",
        "a close-up photo of a {}",
        "a cropped photo of the {}",
        "a bright photo of the {}",
        "a photo of one {}",
        "a rendition of a {}",
        "a picture of the {}",
        "{}",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a close-up painting in the style of {}",
        "a small painting in the style of {}",
        "a rendering in the style of {}",
        "{}",
    ),
}
"""Sentences for images whose captions do not have the word."""


class TextualInversionTarget:
    """The base, frozen, and a word whose vectors train in its text encoders."""

    artifact = "embedding.safetensors"

    def __init__(
        self, config: TextualInversionConfig, accelerator: Accelerator, log: Callable[[str], None]
    ) -> None:
        self.config, report = config, Report()
        found = find_images(config.images, report)  # before models load: a wrong path is said at once
        self.denoiser = Denoiser(config, accelerator.device)
        self.dataset = ImageDataset(config, found, report, self.denoiser, accelerator, log)
        self.word = LearnedEmbedding(self.denoiser, config.token, config.initializer_word, config.vectors)
        sentences = config.templates or TEMPLATES[config.learnable]
        self.sentences = tuple(sentence.replace("{}", self.word.text) for sentence in sentences)
        if config.gradient_checkpointing:
            self.denoiser.unet.enable_gradient_checkpointing()
        log(f"{len(self.dataset)} images, {self.word}, {self.denoiser}.")
        for note in self.dataset.size_notes():
            log(note)

    def data_key(self) -> str:
        """Changes with the images and their captions."""
        return self.dataset.key()

    def parameters(self) -> Mapping[str, Parameter]:
        """The vectors, by text encoder."""
        return self.word.vectors

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """L2 on the noise or velocity of one image per draw, with a sentence that has the word."""
        return image_loss(self.denoiser, [self.dataset.sample(rng, self.captions) for rng in rngs])

    def captions(self, item: Item) -> tuple[str, ...]:
        """Those of the image's captions that have the word, else the templates."""
        own = (normalize_tokens(caption, [self.word.text]) for caption in item.captions)
        return tuple(caption for caption in own if self.word.text in caption) or self.sentences

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """{word: (vectors, width)}, or for SDXL clip_l and clip_g."""
        with durable(output / self.artifact) as unfinished:
            save_file(self.word.state(weights), unfinished, {"format": "pt", WORD: self.word.text})

    def samples(self, folder: Path, step: int) -> Path | None:
        """A row of stills per prompt, always from the same noise."""
        prompts = [normalize_tokens(prompt, [self.word.text]) for prompt in self.config.validation_prompts]
        return sample_sheet(self.denoiser, prompts or self.sentences[:1], folder, step, MAX_SAMPLES)
