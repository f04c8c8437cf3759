"""Encode and decode are inverse in scale, and each is what diffusers' own pipelines do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLImg2ImgPipeline
from tiny import SIZE, tiny_pipeline, tiny_vae

from stillmotion.diffusion import vae as vae_module
from stillmotion.diffusion.vae import (
    decode_frames,
    decode_slices,
    pixels_per_latent,
    scale,
    scaled_decode,
    scaled_encode,
    unscale,
)
from stillmotion.errors import Mismatch, SamplingError

MOMENTS = {"latents_mean": [0.1, -0.2, 0.3, 4.0], "latents_std": [1.0, 2.0, 3.0, 0.5]}
CONFIGS = [{}, {"shift_factor": 0.5}, MOMENTS, MOMENTS | {"shift_factor": 0.5}, {"latents_mean": [9.0] * 4}]


def latents_of(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(0))


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("config", CONFIGS)
def test_a_round_trip_through_the_scale_is_equal(config) -> None:
    config, latents = {"scaling_factor": 0.18215, **config}, latents_of()
    assert torch.allclose(scale(unscale(latents, config), config), latents, atol=1e-6)
    assert not torch.allclose(unscale(latents, config), latents, atol=0.1)


@pytest.mark.parametrize("config", [{}, MOMENTS])
def test_sdxl_pipelines_decode_and_encode_the_same(config) -> None:
    """With `shift_factor` alone the SD and SDXL pipelines do nothing; Flux does what ours does."""
    pipeline = tiny_pipeline("sdxl")
    pipeline.vae.register_to_config(**config)
    drawn = {"num_inference_steps": 2, "width": SIZE, "height": SIZE}
    latents, theirs = (
        pipeline("a cat", **drawn, generator=torch.Generator().manual_seed(2), output_type=kind).images
        for kind in ("latent", "np")
    )
    ours = decode_frames(pipeline.vae, latents)
    assert np.abs(ours - theirs * 255.0).max() < 0.6  # rounding to whole numbers

    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    other = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    pixels = images(1)
    sampled = [
        other.prepare_latents(
            pixels,
            None,
            1,
            1,
            torch.float32,
            "cpu",
            generator=torch.Generator().manual_seed(3),
            add_noise=False,
        )
    ]
    posterior = pipeline.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3))
    assert torch.allclose(scale(posterior, pipeline.vae.config), sampled[0], atol=1e-5)
    mean = pipeline.vae.encode(pixels).latent_dist.mean
    assert torch.equal(scaled_encode(pipeline.vae, pixels), scale(mean, pipeline.vae.config))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_vae_sees_its_own_latents_again(config) -> None:
    """Through the whole pair: decode is given what encode made, whatever the scale."""
    vae = tiny_vae()
    vae.register_to_config(**config)
    mean = vae.encode(images()).latent_dist.mean
    again = scaled_decode(vae, scaled_encode(vae, images()))
    assert torch.allclose(again, vae.decode(mean).sample, atol=1e-4)


def test_other_kinds_of_vae_are_encoded_too() -> None:
    """AutoencoderTiny gives latents, not a distribution."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    latents = scaled_encode(vae, images())
    assert torch.equal(latents, vae.encode(images()).latents)
    assert scaled_decode(vae, latents).shape == (2, 3, SIZE, SIZE) and pixels_per_latent(vae) == 2


def test_bf16_is_near() -> None:
    exact, rough = (scaled_encode(tiny_vae(), images(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.float32 and 0 < (exact - rough).abs().mean() < 0.05 * exact.abs().mean()


def test_slices_change_nothing(monkeypatch) -> None:
    vae = tiny_vae()
    whole = decode_frames(vae, latents_of(5))
    monkeypatch.setattr(vae_module, "SLICE_PIXELS", 2 * SIZE * SIZE)
    slices = list(decode_slices(vae, latents_of(5)))
    assert [len(frames) for frames in slices] == [2, 2, 1] and whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - np.concatenate(slices)).max() <= 1


def test_latents_that_do_not_fit_are_a_sentence() -> None:
    vae = tiny_vae()
    with pytest.raises(Mismatch, match="16 channels, but the VAE of this base takes 4"):
        decode_frames(vae, latents_of().repeat(1, 4, 1, 1))
    vae.register_to_config(latents_mean=[0.0] * 3, latents_std=[1.0] * 4)
    with pytest.raises(Mismatch, match="latents_mean and latents_std of 3 and 4 channels"):
        decode_frames(vae, latents_of())


def test_a_vae_that_runs_away_is_a_sentence() -> None:
    vae = tiny_vae()
    vae.decoder.conv_out.bias.data[0] = torch.inf
    with pytest.raises(SamplingError, match=r"VAE .* float32: .*`vae=`"):
        decode_frames(vae, latents_of())
