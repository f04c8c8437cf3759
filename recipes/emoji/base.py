"""Step 6: the base model, trained on stills from nothing: UNet and text encoder on the autoencoder's latents.

v-prediction with zero terminal SNR (white backgrounds stay white), one batch of random stills a step,
captions said anew each time and left out for a tenth of them. `--concepts` says how many of the order in
stages.py take part; a later run with more goes on from the same state, which is written every few minutes.
`--moved` says which part of the stills is shown shifted, resized and turned: a base that has only ever seen
things in their place pulls them back there even when they stand elsewhere in plain sight, and a motion module
can do little against it. Where noise hides them nothing is moved, so what is drawn without motion stays in
the middle. `--besides` says which part of a batch comes from all the concepts beyond those: they are not
learnt so, but what the styles have in common is.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from concepts import BACKGROUNDS, STYLES, Concept, caption, held_out
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from optim import Average, Muon2, low_precision
from places import RUNS
from stages import ordered
from stills import load, over
from text import WIDTH, text_encoder
from torch import Tensor, nn
from transformers import CLIPTokenizer

from stillmotion.diffusion.vae import scaled_encode

UNET = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (128, 256, 256),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,  # diffusers' old name for the number of heads
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


VIEWS = 12
"""moved versions of each still over white"""
FAR = {"shift": 0.14, "zoom": 0.16, "turn": 10.0}
"""the most that they are moved: parts of the width, part of the size, degrees"""
SETTLED = 850
"""timestep from which noise hides where a thing is"""


@dataclass(frozen=True)
class Still:
    """One training image: which concept in which style over which background."""

    concept: Concept
    style: str
    background: str | None


def write_array(path: Path, array: np.ndarray) -> None:
    """Through a temporary name, so that a killed run leaves no half array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_name("part.npy"), array)
    path.with_name("part.npy").rename(path)


@torch.no_grad()
def latents() -> tuple[list[Still], Tensor]:
    """Every training still over white and over two colours, as whitened latents (N, 8, 16, 16) fp16;
    cached.
    """
    pixels, rows = load()
    index = {(row["code"], row["style"]): i for i, row in enumerate(rows)}
    found, colours = [], list(BACKGROUNDS)
    for k, concept in enumerate(ordered()):
        for j, style in enumerate(STYLES):
            if (concept.code, style) in index and not held_out(concept.code, style):
                first = (3 * k + 5 * j) % len(colours)
                picked = (None, colours[first], colours[(first + 3) % len(colours)])
                found += [Still(concept, style, background) for background in picked]
    cache = RUNS / "base" / "latents.npy"
    if not cache.exists():
        vae, parts = AutoencoderKL.from_pretrained(RUNS / "vae"), []
        for start in range(0, len(found), 32):
            chunk = found[start : start + 32]
            white = (255, 255, 255)
            images = [
                over(
                    pixels[index[s.concept.code, s.style]],
                    BACKGROUNDS[s.background] if s.background else white,
                )
                for s in chunk
            ]
            x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
            with low_precision():
                parts.append(scaled_encode(vae, x.float()).half().numpy())
        write_array(cache, np.concatenate(parts))
    return found, torch.from_numpy(np.load(cache))


@torch.no_grad()
def moved_latents(white: list[int], stills: list[Still]) -> Tensor:
    """Those stills in VIEWS other places, sizes and angles, as latents (n, VIEWS, 8, 16, 16) fp16; cached,
    so remove the file after a change of FAR.
    """
    cache = RUNS / "base" / f"moved-{len(white)}.npy"
    if not cache.exists():
        pixels, rows = load()
        index = {(row["code"], row["style"]): i for i, row in enumerate(rows)}
        vae, parts = AutoencoderKL.from_pretrained(RUNS / "vae"), []
        for i in white:
            image = over(pixels[index[stills[i].concept.code, stills[i].style]])
            x = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
            with low_precision():
                parts.append(scaled_encode(vae, moved(x, i)).half().numpy())
        write_array(cache, np.stack(parts))
    return torch.from_numpy(np.load(cache))


def moved(image: Tensor, seed: int) -> Tensor:
    """(3, h, h) in -1..1 over white -> (VIEWS, 3, h, h): shifted, resized and turned at random."""
    generator = torch.Generator().manual_seed(seed)
    right, down, size, turn = 2 * torch.rand(4, VIEWS, generator=generator) - 1
    scale, angle = (1 + FAR["zoom"]) ** size, torch.deg2rad(FAR["turn"] * turn)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shifts = 2 * FAR["shift"] * torch.stack([right, down])
    matrix = torch.stack([torch.stack([cos, -sin, shifts[0]], 1), torch.stack([sin, cos, shifts[1]], 1)], 1)
    grid = F.affine_grid(matrix, [VIEWS, *image.shape], align_corners=False)
    return F.grid_sample((image - 1).expand(VIEWS, -1, -1, -1), grid, "bicubic", align_corners=False) + 1


class Model(nn.Module):
    """UNet and text encoder, side by side: what the optimizer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.text = UNet2DConditionModel(**UNET), text_encoder()
        self.unet.set_attn_processor(AttnProcessor())  # the fused attention's backward pass is slow on CPUs

    def forward(self, noisy: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, steps, self.text(tokens).last_hidden_state).sample


class Batches:
    """Random stills with captions, by step alone: the same step draws the same batch in every run."""

    def __init__(self, concepts: int, batch: int, moved: float = 0.0, besides: float = 0.0):
        stills, self.latents = latents()
        names = {c.code for c in ordered()[:concepts]}
        plain = [i for i, still in enumerate(stills) if still.background is None]
        self.white = [i for i in plain if stills[i].concept.code in names]
        self.others = [i for i in plain if stills[i].concept.code not in names]
        self.stills, self.batch, self.moved, self.besides = stills, batch, moved, besides
        self.place = {i: k for k, i in enumerate(self.white)}
        self.views = moved_latents(self.white, stills) if moved else None
        self.tokenizer = CLIPTokenizer.from_pretrained(RUNS / "text")

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents (b, 8, 16, 16), noise of the same shape, timesteps (b,) spread evenly, tokens (b, 32)."""
        per_epoch = len(self.white) // self.batch
        order = np.random.default_rng((3, step // per_epoch)).permutation(self.white)
        at = (step % per_epoch) * self.batch
        rng = np.random.default_rng((5, step))
        white = [
            rng.choice(self.others) if rng.random() < self.besides else int(i)
            for i in order[at : at + self.batch]
        ]
        picked = [i + (rng.integers(1, 3) if rng.random() < 0.2 else 0) for i in white]
        said = []
        for i in picked:
            still = self.stills[i]
            text = caption(still.concept, still.style, still.background, rng)
            said.append("" if rng.random() < 0.1 else text)
        tokens = self.tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
        generator = torch.Generator().manual_seed(step)
        z, noise = self.latents[picked].float(), torch.randn(self.batch, 8, 16, 16, generator=generator)
        even = (torch.arange(self.batch) + torch.rand(self.batch, generator=generator)) / self.batch
        for k, i in enumerate(picked):
            if self.views is not None and i in self.place and rng.random() < self.moved:
                z[k] = self.views[self.place[i], rng.integers(VIEWS)].float()
                even[k] *= SETTLED / 1000
        return z, noise, (even * 1000).long(), tokens


def loss_of(
    model: Model, scheduler: DDIMScheduler, z: Tensor, noise: Tensor, steps: Tensor, tokens: Tensor
) -> Tensor:
    noisy, target = scheduler.add_noise(z, noise, steps), scheduler.get_velocity(z, noise, steps)
    with low_precision():
        found = model(noisy, steps, tokens)
    return (found.float() - target).pow(2).mean()


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    folder, clock = RUNS / "base", time.time()
    batches = Batches(options.concepts, options.batch, options.moved, options.besides)
    scheduler, model = DDIMScheduler(**SCHEDULER), Model()
    optimizer = Muon2(model.named_parameters(), options.peak, muon=options.optimizer == "muon")
    average, step = Average(model, options.decay), 0
    state = folder / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average.shadow, average.steps, step = saved["average"], saved["averaged"], saved["step"]
    size = sum(p.numel() for p in model.unet.parameters()) / 1e6
    print(f"{len(batches.white)} stills, UNet of {size:.1f} M parameters, from step {step}", flush=True)
    losses, saved_at, first = [], time.time(), step
    while (minutes := (time.time() - clock) / 60) < options.minutes:
        loss = loss_of(model, scheduler, *batches(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = min(1.0, (step + 1) / 100)
        left = (options.minutes - minutes) / (options.cooldown * options.minutes)
        optimizer.step(options.peak * warm * min(1.0, max(0.02, left)))
        average.update(model)
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            rate = (step - first) * options.batch / (60 * minutes)
            epochs = step * options.batch / len(batches.white)
            print(
                f"{step} loss {np.mean(losses):.4f} {minutes:.1f} min {rate:.0f}/s {epochs:.0f} epochs",
                flush=True,
            )
            losses = []
        if time.time() - saved_at > 300:
            save(state, model, optimizer, average, step)
            saved_at = time.time()
    save(state, model, optimizer, average, step)


def save(state, model: Model, optimizer: Muon2, average: Average, step: int) -> None:
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.shadow}
    torch.save({**parts, "averaged": average.steps, "step": step}, state.with_name("state.part"))
    state.with_name("state.part").rename(state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=1209)
    parser.add_argument(
        "--minutes", type=float, default=480, help="of this run; the rate falls in its last part"
    )
    parser.add_argument(
        "--cooldown", type=float, default=0.25, help="that last part, as a share of the minutes"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.999, help="of the moving average")
    parser.add_argument("--moved", type=float, default=0.0, help="part of the stills that are moved about")
    parser.add_argument(
        "--besides", type=float, default=0.0, help="part of the stills from all other concepts"
    )
    train(parser.parse_args())
