"""The domain adapter target: an image LoRA that takes in how videos look, before motion is trained on them.

First stage of AnimateDiff v3: trained on single frames, then frozen and on while motion trains (`train
motion --domain-adapter`), so that compression, watermarks and style of the videos stay out of the motion;
left out or scaled when clips are made. Knows nothing of motion, optimizers and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.data.report import Report
from stillmotion.data.sources import CLIP_SUFFIXES, STILL_SUFFIXES, find_items
from stillmotion.training.clips import key_of, note_captions, prepare_clips
from stillmotion.training.config import DomainAdapterConfig
from stillmotion.training.denoise import Denoiser, Sample, loss_of
from stillmotion.training.draws import Draw
from stillmotion.training.low_rank import LowRanks, attention_layers
from stillmotion.training.metadata import lora_metadata
from stillmotion.training.targets import Loss
from stillmotion.training.validation import sample_sheet

SHOWN = 4
ROW = 4
"""sample pictures per prompt"""


class DomainAdapterTarget:
    """Base frozen in the working precision, a LoRA on its attentions, latents of all frames on disk."""

    product = "adapter.safetensors"

    def __init__(
        self, config: DomainAdapterConfig, accelerator: Accelerator, say: Callable[[str], None]
    ) -> None:
        self.config = config
        report = Report()
        items = find_items(config.videos, report, config.video_folder, CLIP_SUFFIXES | STILL_SUFFIXES)
        self.denoiser = Denoiser(config, accelerator.device)
        vae, unet = self.denoiser.pipeline.vae, self.denoiser.unet
        self.clips = prepare_clips(config, items, report, vae, accelerator, say)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.ranks = LowRanks({"unet": unet}, attention_layers, config)
        frames = sum(clip.length for clip in self.clips)
        weights = f"{self.ranks.size / 1e6:.1f} M LoRA weights"
        say(f"{frames} frames of {len(self.clips)} clips, {weights}, {self.denoiser}.")
        note_captions(self.clips, self.denoiser.pipeline, say)

    def data_key(self) -> str:
        """Names clips and captions."""
        return key_of(self.clips)

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA."""
        return self.ranks.parameters()

    def loss(self, draws: Sequence[Draw]) -> Loss:
        """L2 (optionally min-SNR weighted) on the noise or velocity of one random frame per draw."""
        guess = self.denoiser.guess([self.sample(draw) for draw in draws])
        return loss_of(self.denoiser.losses(guess).mean(), guess)

    def sample(self, draw: Draw) -> Sample:
        """One frame (1, c, h, w) of one clip, with noise, a timestep and a caption."""
        clip = self.clips[draw.item(len(self.clips))]
        which, *others = draw.choices(4)
        frame = clip.latents([int(which * clip.length)])
        return self.denoiser.sample(draw, frame, clip.item.captions, *others)

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """The adapter in the layout of AnimateDiff's, and in that of plain diffusers."""
        lora = self.ranks.lora(weights)
        captions = (caption for clip in self.clips for caption in clip.item.captions)
        facts = lora_metadata(self.config, self.denoiser, captions, step)
        lora.save(output / self.product, "original", metadata=facts)
        lora.save(output / "adapter-peft.safetensors", "peft", metadata=facts)

    def samples(self, folder: Path, step: int) -> Path | None:
        """Some stills per validation prompt with the adapter on."""
        captions = dict.fromkeys(clip.item.captions[0] for clip in self.clips)
        prompts = self.config.validation_prompts or list(captions)[:SHOWN]
        with self.ranks.resting():
            return sample_sheet(self.denoiser, prompts, folder, step, ROW)
