"""Step 4: the autoencoder, 128x128x3 <-> 16x16x8, on stills of all styles over random backgrounds.

What counts on two cores is the number of steps, so most of them see 64-pixel crops in batches of eight; the
last twelfth sees whole images. L1 + L2 + gradient loss and a small KL. The latents are then whitened
exactly: their per-channel mean and deviation go into `quant_conv` and `post_quant_conv`, so scaling_factor
stays 1.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from concepts import BACKGROUNDS, held_out
from diffusers import AutoencoderKL
from optim import Average, Muon2, low_precision
from places import RUNS
from stills import load, over
from torch import Tensor

from stillmotion.diffusion.vae import scaled_decode, scaled_encode

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "sample_size": 128,
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}


class Images:
    """Random training images: a still, somewhere, at some size, over some colour. A pure function of the
    step.
    """

    def __init__(self) -> None:
        stills, rows = load()
        self.stills = np.asarray(stills)
        self.train = [i for i, row in enumerate(rows) if not held_out(row["code"], row["style"])]
        self.held = [i for i, row in enumerate(rows) if held_out(row["code"], row["style"])]

    def batch(self, step: int, size: int, crop: int) -> Tensor:
        """(size, 3, crop, crop) in -1..1."""
        rng = np.random.default_rng((17, step))
        colours = np.array([(255, 255, 255), *BACKGROUNDS.values()])
        images = []
        for _ in range(size):
            rgba = self.stills[self.train[rng.integers(len(self.train))]]
            colour = colours[0] if rng.random() < 0.5 else colours[rng.integers(len(colours))]
            if rng.random() < 0.2:
                colour = rng.integers(0, 256, 3)
            y, x = rng.integers(0, 128 - crop + 1, 2)
            image = over(rgba[y : y + crop, x : x + crop], colour)
            images.append(image[:, ::-1] if rng.random() < 0.5 else image)
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1

    def held_out(self, count: int) -> Tensor:
        picked = np.random.default_rng(0).permutation(self.held)[:count]
        return (
            torch.from_numpy(np.stack([over(self.stills[i]) for i in picked])).permute(0, 3, 1, 2) / 127.5 - 1
        )


def loss_of(vae: AutoencoderKL, x: Tensor, noise: torch.Generator) -> Tensor:
    posterior = vae.encode(x).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise)
    y = vae.decode(z).sample.float()
    d = y - x
    edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return d.abs().mean() + 2 * d.pow(2).mean() + 0.5 * edges + 1e-4 * kl


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean PSNR in dB over images in -1..1, rounded to 8 bits as a user sees them."""
    found = []
    for x in images.split(8):
        y = scaled_decode(vae, scaled_encode(vae, x)).clamp(-1, 1)
        error = (((y + 1) * 127.5).round() - ((x + 1) * 127.5).round()).pow(2).mean((1, 2, 3)) / 255**2
        found += (-10 * error.clamp_min(1e-10).log10()).tolist()
    return sum(found) / len(found)


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold z -> (z - mean) / deviation into quant_conv and its inverse into post_quant_conv."""
    z = torch.cat([vae.encode(x).latent_dist.mean for x in images.split(8)])
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
    channels, quant, post = len(mean), vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation[None, :, None, None]


def rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, then a cosine down to 3%."""
    return peak * min(1.0, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(steps: int, peak: float, batch: int, name: str, decoder_only: bool = False) -> None:
    torch.manual_seed(0)
    images, noise = Images(), torch.Generator().manual_seed(1)
    folder = RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    if decoder_only:
        vae = AutoencoderKL.from_pretrained(RUNS / "vae")
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    else:
        vae = AutoencoderKL(**CONFIG)
    optimizer, average, start = Muon2(vae.named_parameters(), peak), Average(vae, 0.999), 0
    state = folder / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        average.shadow, average.steps, start = saved["average"], saved["step"], saved["step"]
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters, from step {start}", flush=True)
    held, clock = images.held_out(64), time.time()
    for step in range(start, steps):
        x = images.batch(step, batch, 64 if step < 0.92 * steps and not decoder_only else 128)
        with low_precision():
            loss = loss_of(vae, x, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(rate(step, steps, peak))
        average.update(vae)
        if (step + 1) % 250 == 0:
            print(f"{step + 1} loss {loss.item():.4f} {(time.time() - clock) / 60:.1f} min", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            vae_now = AutoencoderKL(**CONFIG)
            vae_now.load_state_dict(average.state(vae))
            print(f"   held-out PSNR {psnr(vae_now, held):.2f} dB", flush=True)
            saved = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**saved, "average": average.shadow, "step": step + 1}, f"{state}.part")
            state.with_name("state.pt.part").rename(state)
    vae.load_state_dict(average.state(vae))
    if not decoder_only:
        whiten(vae, torch.cat([images.batch(10**6 + i, 64, 128) for i in range(8)]))
    print(f"final held-out PSNR {psnr(vae, images.held_out(10**6)):.2f} dB", flush=True)
    vae.save_pretrained(RUNS / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--name", default="vae")
    parser.add_argument(
        "--decoder-only", action="store_true", help="keep the latents, make the decoder better"
    )
    options = parser.parse_args()
    train(options.steps, options.peak, options.batch, options.name, options.decoder_only)
