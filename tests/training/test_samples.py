"""Samples of training are drawn as the stock pipeline draws them, by the sampler that the Animator has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import SIZE, tiny_motion

import stillmotion as sm
from stillmotion.attachments.precision import float32_outside
from stillmotion.diffusion.noise import video_noise
from stillmotion.errors import SamplingError
from stillmotion.training.denoiser import Denoiser
from stillmotion.training.samples import sample_clip


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_samples_are_those_of_the_plain_pipeline(configure, precision, guidance) -> None:
    config = configure("run", precision=precision, validation_inference_steps=3, validation_guidance=guidance)
    denoiser = Denoiser(config, torch.device("cpu"))
    pipeline, motion = denoiser.pipeline, tiny_motion().to(denoiser.dtype)
    with sm.attach(pipeline, motion, frames=3):
        ours = sample_clip(denoiser, "a cat", 3, seed=5, noise_alpha=1.5, size=(SIZE, 24))
        noise = video_noise(pipeline.vae, (3, SIZE, 24), 1.5, torch.Generator().manual_seed(5))
        with float32_outside(pipeline.unet):
            theirs = pipeline(
                "a cat",
                height=SIZE,
                width=24,
                num_inference_steps=3,
                guidance_scale=guidance,
                num_images_per_prompt=3,
                latents=noise,
                output_type="np",
            ).images
    assert ours.shape == (3, SIZE, 24, 3)
    assert np.abs(ours - theirs * 255.0).max() < 0.6  # rounding to whole numbers


def test_weights_that_ran_away_are_a_sentence(configure) -> None:
    denoiser = Denoiser(configure("run", validation_inference_steps=2), torch.device("cpu"))
    denoiser.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(SamplingError, match="step 1 of 2 the latents are no longer finite"):
        sample_clip(denoiser, "a cat", 2, seed=5)
