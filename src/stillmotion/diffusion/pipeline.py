"""What is used of a diffusers pipeline, for the type checker: diffusers itself tells it nothing."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from stillmotion.diffusion.vae import VAE


class Pipeline(Protocol):
    """StableDiffusionPipeline, StableDiffusionXLPipeline and their kin."""

    unet: Any
    scheduler: Any
    vae: VAE

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""

    @property
    def _execution_device(self) -> torch.device:
        """Where it computes, which may be elsewhere than its weights are."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The embeddings of a prompt."""

    def maybe_convert_prompt(self, prompt: Any, tokenizer: Any) -> Any:
        """The prompt with the tokens of textual inversions spelled out."""

    def load_textual_inversion(self, *args: Any, **kwargs: Any) -> None:
        """Teaches a text encoder a word."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Writes it as a folder."""

    def save_config(self, *args: Any, **kwargs: Any) -> None:
        """Writes which parts it has."""

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """How its bar looks."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """It on another device or in another type."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Images of a prompt."""
