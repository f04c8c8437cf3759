"""The VAE between pixels and the UNet's latents. Encoding and decoding are each other's inverse in scale.

    pixels (n, 3, H, W) in -1..1  ->  VAE  ->  its own latents  ->  the UNet's latents (n, c, H / f, W / f)

The scale is what diffusers' pipelines do: (z - latents_mean) * scaling_factor / latents_std where the VAE's
config has both, else (z - shift_factor) * scaling_factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillmotion.errors import Mismatch, SamplingError

SLICE_PIXELS = 512 * 512
"""Decoded at once: one frame of 512x512, or sixteen of 128x128, so memory does not grow with the clip."""

SCALE_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""What of a VAE's config decides the scale of latents."""


class VAE(Protocol):
    """What is needed of diffusers' AutoencoderKL and its kin."""

    @property
    def config(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, x: Tensor) -> Any: ...

    def decode(self, z: Tensor) -> Any: ...


def pixels_per_latent(vae: VAE) -> int:
    """How many pixels of a side one latent stands for: 8 for Stable Diffusion."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def scale(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Latents (n, c, h, w) of a VAE with this config -> the UNet's latents."""
    if (moments := _moments(latents, config)) is not None:
        mean, std = moments
        return (latents - mean) * config["scaling_factor"] / std
    return (latents - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]


def unscale(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The UNet's latents (n, c, h, w) -> those of a VAE with this config: the inverse of `scale`."""
    if (moments := _moments(latents, config)) is not None:
        mean, std = moments
        return latents * std / config["scaling_factor"] + mean
    return latents / config["scaling_factor"] + (config.get("shift_factor") or 0.0)


@torch.no_grad()
def scaled_encode(vae: VAE, pixels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Pixels (n, 3, H, W) in -1..1 -> the UNet's latents (n, c, h, w), float32 on the VAE's device.

    They are the means of the VAE's distribution: no random numbers are drawn.

    Args:
        vae: the pipeline's VAE.
        pixels: on any device, in any floating type.
        dtype: what the VAE computes in, by autocast; default: nothing is changed. In bf16 a processor
            encodes two to three times as fast, half a percent off.
    """
    lower = dtype not in (None, torch.float32)
    with nullcontext() if dtype is None else torch.autocast(vae.device.type, dtype, enabled=lower):
        encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return scale(latents.float(), vae.config)


@torch.no_grad()
def scaled_decode(vae: VAE, latents: Tensor) -> Tensor:
    """The UNet's latents (n, c, h, w) -> pixels (n, 3, H, W) float32, about -1..1, in the VAE's precision."""
    unscaled = unscale(latents, vae.config)
    return vae.decode(unscaled.to(vae.device, vae.dtype)).sample.float()


def decode_slices(vae: VAE, latents: Tensor) -> Iterator[npt.NDArray[np.uint8]]:
    """The UNet's latents (f, c, h, w) -> frames (n, H, W, 3) uint8, a few of them at a time.

    Mismatch for latents of another number of channels; SamplingError where the VAE gives nan or inf.
    """
    made, taken = latents.shape[1], vae.config.latent_channels
    if made != taken:
        raise Mismatch(f"The latents have {made} channels, but the VAE of this base takes {taken}.")
    size = latents.shape[2] * latents.shape[3] * pixels_per_latent(vae) ** 2
    done = 0
    for part in latents.split(max(1, SLICE_PIXELS // size)):
        pixels = scaled_decode(vae, part)
        if not pixels.isfinite().all():
            raise SamplingError(
                f"The VAE gave values that are not finite (nan or inf) for frame {done} or soon after, in "
                f"{str(vae.dtype).removeprefix('torch.')}: load it in float32, or use another VAE (`vae=`)."
            )
        done += len(part)
        yield to_uint8(pixels)


def decode_frames(vae: VAE, latents: Tensor) -> npt.NDArray[np.uint8]:
    """All frames (f, H, W, 3) of `decode_slices`."""
    return np.concatenate(list(decode_slices(vae, latents)))


def to_uint8(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """(f, 3, h, w) in -1..1 -> (f, h, w, 3) in 0..255."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _moments(latents: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation (1, c, 1, 1) of each channel, if the config has both; Mismatch for another c."""
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return None
    mean, std = (
        torch.tensor(config[name], device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    if not mean.shape[1] == std.shape[1] == latents.shape[1]:
        raise Mismatch(
            f"The config of the VAE has latents_mean and latents_std of {mean.shape[1]} and {std.shape[1]} "
            f"channels, but the latents have {latents.shape[1]}: correct its config.json."
        )
    return mean, std
