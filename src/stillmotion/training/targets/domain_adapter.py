"""The domain adapter target: an image LoRA that takes in how videos look, before motion is trained on them.

First stage of AnimateDiff v3: trained on single frames, then frozen and on while motion trains (`train
motion --domain-adapter`), so that compression, watermarks and style of the videos stay out of the motion;
left out or scaled when clips are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import CLIP_SUFFIXES, STILL_SUFFIXES, find_items
from stillmotion.training.config import DomainAdapterConfig
from stillmotion.training.data.videos import key_of, note_captions, prepare_clips
from stillmotion.training.denoiser import Denoiser, Sample, loss_of
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.lora_metadata import lora_metadata
from stillmotion.training.targets.lora_params import LoraParameters, attention_layers

MAX_SAMPLES = 4
ROW = 4
"""sample images per prompt"""


class DomainAdapterTarget:
    """Base frozen in the working precision, a LoRA on its attentions, latents of all frames on disk."""

    artifact = "adapter.safetensors"

    def __init__(
        self, config: DomainAdapterConfig, accelerator: Accelerator, log: Callable[[str], None]
    ) -> None:
        self.config = config
        report = Report()
        items = find_items(config.videos, report, config.video_folder, CLIP_SUFFIXES | STILL_SUFFIXES)
        self.denoiser = Denoiser(config, accelerator.device)
        vae, unet = self.denoiser.pipeline.vae, self.denoiser.unet
        self.clips = prepare_clips(config, items, report, vae, accelerator, log)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.lora_params = LoraParameters({"unet": unet}, attention_layers, config)
        frames = sum(clip.length for clip in self.clips)
        weights = f"{self.lora_params.size / 1e6:.1f} M LoRA parameters"
        log(f"{frames} frames of {len(self.clips)} clips, {weights}, {self.denoiser}.")
        note_captions(self.clips, self.denoiser.pipeline, log)

    def data_key(self) -> str:
        """Names clips and captions."""
        return key_of(self.clips)

    def parameters(self) -> Mapping[str, Parameter]:
        """The LoRA."""
        return self.lora_params.parameters()

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """L2 (optionally min-SNR weighted) on the noise or velocity of one random frame per draw."""
        prediction = self.denoiser.predict([self.sample(rng) for rng in rngs])
        return loss_of(self.denoiser.losses(prediction).mean(), prediction)

    def sample(self, rng: SampleRng) -> Sample:
        """One frame (1, c, h, w) of one clip, with noise, a timestep and a caption."""
        clip = self.clips[rng.item(len(self.clips))]
        frame = clip.latents([rng.index("frame", clip.length)])
        return self.denoiser.sample(rng, frame, clip.item.captions)

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """The adapter in the layout of AnimateDiff's, and in that of plain diffusers."""
        lora = self.lora_params.lora(weights)
        captions = (caption for clip in self.clips for caption in clip.item.captions)
        facts = lora_metadata(self.config, self.denoiser, captions, step)
        lora.save(output / self.artifact, "animatediff", metadata=facts)
        lora.save(output / "adapter-peft.safetensors", "peft", metadata=facts)

    def samples(self, folder: Path, step: int) -> Path | None:
        """Some stills per validation prompt, with the adapter and without."""
        captions = dict.fromkeys(clip.item.captions[0] for clip in self.clips)
        prompts = self.config.validation_prompts or list(captions)[:MAX_SAMPLES]
        with self.lora_params.eval_mode():
            return sample_sheet(self.denoiser, prompts, folder, step, ROW, without=self.lora_params.off)
