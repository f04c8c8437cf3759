"""The target of `Trainer`: any module that acts on a UNet, any dataset of (frames or latents, caption)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from stillmotion.atomic import durable
from stillmotion.attachments.frames import FrameContext
from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.diffusion.schedule import BETAS
from stillmotion.diffusion.vae import scaled_encode
from stillmotion.errors import DataError, TrainingError
from stillmotion.training.config.trainer import TrainerConfig
from stillmotion.training.denoiser import Denoiser, Prediction, Sample, loss_of, same_shapes
from stillmotion.training.engine.rng import SampleRng
from stillmotion.training.engine.target import Loss
from stillmotion.training.samples import sample_sheet
from stillmotion.training.targets.initial_motion import resolve_noise_alpha, save_motion

MAX_SAMPLES = 4
LossFunction = Callable[[Prediction], Tensor]
"""From what the network predicts for a batch to a scalar, the mean over its samples."""


class Dataset(Protocol):
    """A torch Dataset, a list, or anything with a length whose items are (frames or latents, caption)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class OwnTarget:
    """A frozen pipeline, a module in training on its UNet, and a dataset that is read sample by sample."""

    def __init__(
        self,
        config: TrainerConfig,
        accelerator: Accelerator,
        log: Callable[[str], None],
        *,
        pipeline: Any,
        model: nn.Module,
        dataset: Dataset,
        loss: LossFunction | None = None,
    ) -> None:
        self.config, self.dataset, self.model = config, dataset, model
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise TrainingError(
                f"{type(model).__name__} has no parameter with requires_grad: nothing trains."
            )
        self.motion = model if isinstance(model, MotionModel) else None
        self.artifact = "motion" if self.motion else "model.safetensors"
        family = None if self.motion is None else self.motion.family
        alpha = resolve_noise_alpha(config.noise_alpha, family)
        self.denoiser = Denoiser(
            config,
            accelerator.device,
            None if family is None else family.schedule.only(*BETAS),
            rounded=False,
            noise_alpha=alpha,
            pipeline=pipeline,
        )
        self._round_the_rest()
        self._loss = loss or (lambda prediction: self.denoiser.losses(prediction).mean())
        model.to(accelerator.device).train()
        latents, _ = self.read(0)
        self.frames, side = len(latents), config.resolution
        self.size = (side, side) if side else self.denoiser.pixels(latents)
        self.attachment = (
            attach_motion(self.denoiser.unet, self.motion, frames=self.frames) if self.motion else None
        )
        count = sum(parameter.numel() for parameter in self.trained.values())
        log(f"{len(dataset)} samples, {count / 1e6:.1f} M parameters, {self.denoiser}.")

    def data_key(self) -> str:
        """Kind and length of the dataset: what is in it is not looked through."""
        return f"{type(self.dataset).__qualname__} {len(self.dataset)}"

    def parameters(self) -> Mapping[str, Parameter]:
        """Those of the module that had requires_grad."""
        return self.trained

    def loss(self, rngs: Sequence[SampleRng]) -> Loss:
        """The loss of one sample of the dataset per draw; one pass of the UNet for each shape."""
        samples = [self.sample(rng) for rng in rngs]
        values, spreads = [], []
        for indices in same_shapes(samples):
            chosen = [samples[index] for index in indices]
            self._expect_clips_of(len(chosen[0].latents))
            prediction = self.denoiser.predict(chosen)
            value = self._loss(prediction)
            cut = prediction.output.requires_grad and not getattr(value, "requires_grad", False)
            if not isinstance(value, Tensor) or value.ndim or cut:
                raise TrainingError(
                    f"The loss function gave {_kind(value)}{' without gradient' if cut else ''}, expected a "
                    "scalar tensor with gradient: the mean over the samples."
                )
            part, share = loss_of(value, prediction), len(indices) / len(samples)
            values.append(part.value * share)
            spreads.append(part.spread * share)
        total = torch.stack(values).sum()
        if not total.requires_grad:
            raise TrainingError(
                f"Nothing that {type(self.model).__name__} has changes what the UNet predicts for these "
                f"samples ({len(samples[0].latents)} frames): attach the module to pipeline.unet, or give "
                "clips of two frames or more for motion."
            )
        return Loss(total, torch.stack(spreads).sum())

    def sample(self, rng: SampleRng) -> Sample:
        """An item of the dataset with noise, a timestep and one of its captions."""
        return self.denoiser.sample(rng, *self.read(rng.item(len(self.dataset))))

    def read(self, index: int) -> tuple[Tensor, Sequence[str]]:
        """Latents (f, c, h, w) and captions of an item; DataError that names it for what is neither."""
        item = self.dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"dataset[{index}] is {_kind(item)}, expected a pair: frames or latents, caption."
            )
        content, caption = item
        captions = [caption] if isinstance(caption, str) else caption
        if (
            not captions
            or not isinstance(captions, (list, tuple))
            or not all(isinstance(each, str) for each in captions)
        ):
            raise DataError(
                f"dataset[{index}] has {_kind(caption)} as its caption, expected text or a list of texts."
            )
        channels = self.denoiser.unet.config.in_channels
        if isinstance(content, Tensor) and content.is_floating_point():
            if content.ndim == 4 and content.shape[1] == channels:
                return content, captions
        elif (pixels := as_pixels(content)) is not None:
            vae, dtype = self.denoiser.pipeline.vae, self.denoiser.dtype
            return scaled_encode(vae, pixels.float() / 127.5 - 1, dtype), captions
        raise DataError(
            f"dataset[{index}] has {_kind(content)}, expected latents as a float tensor (frames, {channels}, "
            "height, width), or frames: uint8 of shape (frames, height, width, 3) or (frames, 3, height, "
            "width), PIL images, a Clip."
        )

    def save(self, output: Path, weights: Mapping[str, Tensor], step: int = 0) -> None:
        """A `MotionModel` into motion/, other modules into model.safetensors, by the names of parameters."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        if self.motion is None:
            with durable(output / self.artifact) as unfinished:
                save_file(state, unfinished, {"format": "pt"})
            return
        height, width = self.size
        schedule = self.denoiser.schedule.only(*BETAS, "noise_alpha").said()
        defaults = {"frames": self.frames, "width": width, "height": height, "fps": self.config.fps}
        save_motion(output / self.artifact, self.motion, state, defaults, schedule)

    def samples(self, folder: Path, step: int) -> Path | None:
        """A clip per validation prompt, by default of the first captions."""
        first = range(min(MAX_SAMPLES, len(self.dataset)))
        prompts = self.config.validation_prompts or [self.read(index)[1][0] for index in first]
        self._expect_clips_of(self.frames)
        self.model.eval()
        try:
            return sample_sheet(
                self.denoiser, prompts, folder, step, self.frames, self.config.fps, size=self.size
            )
        finally:
            self.model.train()

    def detach(self) -> None:
        """Takes the motion off the UNet again."""
        if self.attachment is not None:
            self.attachment.detach()

    def _expect_clips_of(self, frames: int) -> None:
        """Tells all that is attached to the UNet how many images make a clip in the next calls."""
        if (context := FrameContext.on(self.denoiser.unet)).attachments:
            context.total = frames

    def _round_the_rest(self) -> None:
        """The frozen weights of the UNet in the working precision; those in training are rounded later, from
        fp32."""
        own = {id(parameter) for parameter in self.trained.values()}
        for parameter in self.denoiser.unet.parameters():
            if id(parameter) not in own:
                parameter.data = parameter.data.to(self.denoiser.dtype)


def as_pixels(content: Any) -> Tensor | None:
    """Frames as uint8 (f, 3, h, w); None for what is no frames.

    Takes a PIL image or several of one size, a Clip, and uint8 arrays or tensors (f, h, w, 3) or
    (f, 3, h, w), for one image also without f.
    """
    content = getattr(content, "frames", content)
    images = [content] if isinstance(content, Image.Image) else content
    if isinstance(images, (list, tuple)) and images and all(isinstance(i, Image.Image) for i in images):
        if len({image.size for image in images}) > 1:
            return None
        content = np.stack([np.asarray(image.convert("RGB")) for image in images])
    if isinstance(content, np.ndarray) and content.dtype == np.uint8:
        content = torch.from_numpy(np.ascontiguousarray(content))
    if not isinstance(content, Tensor) or content.dtype != torch.uint8 or content.ndim not in (3, 4):
        return None
    frames = content if content.ndim == 4 else content[None]
    if frames.shape[-1] == 3:
        frames = frames.movedim(-1, 1)
    return frames if frames.shape[1] == 3 and len(frames) else None


def _kind(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}"
