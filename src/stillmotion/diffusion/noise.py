"""The noise of a clip: how much of it the frames share.

With independent noise in every frame, which frames are neighbours must be learnt from the images alone; noise
that is shared in part from frame to frame tells it, in training and in sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillmotion.diffusion.vae import VAE, pixels_per_latent


def progressive_noise(noise: Tensor, alpha: float) -> Tensor:
    """Independent standard normal noise (f, ...) of f frames -> noise of which a part goes on.

    Frame i is `(alpha * frame i-1 + noise i) / sqrt(1 + alpha^2)`, so each frame alone stays standard normal
    and frames n apart correlate by `(alpha / sqrt(1 + alpha^2)) ** n`. `alpha=0` gives the noise itself. The
    rule is that of Ge et al. 2023, "Preserve Your Own Correlation", which recommends 2.
    """
    if not alpha:
        return noise
    size = (1 + alpha * alpha) ** 0.5
    frames = [noise[0]]
    for fresh in noise[1:]:
        frames.append((alpha * frames[-1] + fresh) / size)
    return torch.stack(frames)


def video_noise(vae: VAE, size: tuple[int, int, int], alpha: float, generator: torch.Generator) -> Tensor:
    """Noise (f, c, h, w) for a clip, in the shape of this VAE's latents.

    Drawn on the CPU in float32 whatever the device, so that a seed means the same everywhere.

    Args:
        vae: the VAE that will decode.
        size: frames, height and width, the last two in pixels.
        alpha: how much of a frame's noise goes on into the next, as in `progressive_noise`.
        generator: of the CPU; it decides the noise.
    """
    frames, factor = size[0], pixels_per_latent(vae)
    shape = (frames, vae.config.latent_channels, *(side // factor for side in size[1:]))
    return progressive_noise(torch.randn(shape, generator=generator), alpha)
