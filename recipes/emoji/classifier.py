"""Step 8: the recipe's judge, which says which concept and which style an image shows.

Two small networks, trained on real stills of all five styles with augmentation, never on generated images.
The expert knows the concepts that the base was trained on, in the order of stages.py, so with 300 a top-5 hit
is five of three hundred; the generalist tells only styles apart, and has seen stills of all concepts but a
few (never_shown). Of the style both have a vote.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from concepts import BACKGROUNDS, KEPT_OUT, STYLES
from optim import Average, Muon2, low_precision
from safetensors.torch import load_file, save_file
from stages import ordered
from stills import load
from torch import Tensor, nn

STYLE_NAMES = (*STYLES, *KEPT_OUT)
JUDGE = Path(__file__).with_name("judge.safetensors")
"""The trained judge, fp16, kept with the recipe: numbers of different days are given by the same one."""


class Block(nn.Module):
    """A residual pair of convolutions that may halve the image."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)])
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.silu(self.norms[1](self.first(F.silu(self.norms[0](x))))))
        return h + self.skip(self.pool(x))


class Network(nn.Module):
    """Answers about an image (b, 3, h, w), all in one row of logits."""

    def __init__(self, widths: tuple[int, ...], answers: int):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.blocks = nn.Sequential(*(Block(a, b, 2) for a, b in zip(widths[:-1], widths[1:], strict=True)))
        self.emb = nn.Linear(widths[-1] * 2, answers)

    def features(self, x: Tensor) -> Tensor:
        """(b, 2c): what is seen before it is named."""
        h = F.silu(self.blocks(self.stem(x)))
        return torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.emb(F.dropout(self.features(x), 0.2, self.training))


class Classifier(nn.Module):
    """Concept and style of an image (b, 3, 128, 128) in -1..1."""

    def __init__(self, concept_count: int):
        super().__init__()
        self.concept_count = concept_count
        self.expert = Network((32, 64, 128, 256), concept_count + len(STYLE_NAMES))
        self.generalist = Network((24, 48, 96), len(STYLE_NAMES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the concepts and of the styles; for the latter both networks vote."""
        concept, style = self.expert(small(x)).tensor_split([self.concept_count], 1)
        return concept, style.log_softmax(1) + self.generalist(x).log_softmax(1)


def augmented(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """(b, 4, h, h) in 0..1 -> (b, 3, h, h) in -1..1: colour behind, moved, turned, blurred,
    recoloured, noisy.
    """
    b = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=generator)

    colours = torch.tensor([(255, 255, 255), *BACKGROUNDS.values()]) / 255
    behind = torch.where(
        uniform(0, 1, 1) < 0.6, colours[:1], colours[torch.randint(9, (b,), generator=generator)]
    )
    x = rgba[:, :3] * rgba[:, 3:] + behind[:, :, None, None] * (1 - rgba[:, 3:])
    angle, scale = uniform(-0.26, 0.26), uniform(0.85, 1.25)
    turn = torch.stack(
        [scale * angle.cos(), -scale * angle.sin(), scale * angle.sin(), scale * angle.cos()], 1
    )
    theta = torch.cat([turn.view(b, 2, 2), uniform(-0.15, 0.15, 2, 1)], 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(x, 3, 1, 1)
    x = torch.lerp(x, soft, uniform(-0.3, 1, 1, 1, 1))
    x = x * uniform(0.8, 1.2, 3, 1, 1) + uniform(-0.1, 0.1, 1, 1, 1)
    x = x + torch.randn(x.shape, generator=generator) * uniform(0, 0.06, 1, 1, 1)
    holes = F.interpolate((uniform(0, 1, 1, 6, 6) < 0.05).float(), size=x.shape[-1])
    return (x * (1 - holes) + 0.5 * holes).clamp(0, 1) * 2 - 1


def small(images: Tensor) -> Tensor:
    """(b, c, 128, 128) -> (b, c, 64, 64), averaged."""
    return F.avg_pool2d(images, 2)


def known_codes(count: int) -> dict[str, int]:
    """Code of each of the first `count` concepts -> its place in the judge's answer."""
    return {concept.code: i for i, concept in enumerate(ordered()[:count])}


def never_shown(count: int) -> set[str]:
    """Codes of a tenth of the other concepts, which test the sense of style."""
    return {concept.code for concept in ordered()[count::10]}


def train(minutes: float, count: int) -> None:
    """Two thirds of the time for the expert, a third for the generalist."""
    torch.manual_seed(0)
    pixels, rows = load()
    codes, kept_back, model = known_codes(count), never_shown(count), Classifier(count)
    styles = torch.tensor([STYLE_NAMES.index(row["style"]) for row in rows])
    known = [i for i, row in enumerate(rows) if row["code"] in codes]
    shown = [i for i, row in enumerate(rows) if row["code"] not in kept_back]
    concepts = torch.tensor([codes[rows[i]["code"]] for i in known])

    def images(chosen: list[int]) -> Tensor:
        return torch.from_numpy(np.array(pixels[chosen])).permute(0, 3, 1, 2)

    parts = {
        "expert": fit(
            model.expert,
            small(images(known).float()).byte(),
            {count: concepts, len(STYLE_NAMES): styles[known]},
            minutes * 2 / 3,
        ),
        "generalist": fit(model.generalist, images(shown), {len(STYLE_NAMES): styles[shown]}, minutes / 3),
    }
    state = {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, JUDGE)


def fit(
    model: Network,
    rgba: Tensor,
    answers: dict[int, Tensor],
    minutes: float,
    batch: int = 64,
    peak: float = 2e-3,
) -> dict[str, Tensor]:
    """Trains on images (n, 4, h, w) uint8 for so many minutes; gives the averaged weights.

    `answers` maps how many choices a question has, in the order of the network's answers, to the right one
    of each image.
    """
    optimizer, average = Muon2(model.named_parameters(), peak), Average(model, 0.998)
    generator, clock, step, hits = torch.Generator(), time.time(), 0, []
    while (left := 1 - (time.time() - clock) / 60 / minutes) > 0:
        generator.manual_seed(step)
        picked = torch.randint(len(rgba), (batch,), generator=generator)
        with low_precision():
            said = model(augmented(rgba[picked].float() / 255, generator)).float().split(list(answers), 1)
        pairs = [(each, right[picked]) for each, right in zip(said, answers.values(), strict=True)]
        sum(F.cross_entropy(each, right, label_smoothing=0.1) for each, right in pairs).backward()
        optimizer.step(peak * min(1.0, (step + 1) / 100, max(0.02, left / 0.5)))
        average.update(model)
        hits.append([(each.argmax(1) == right).float().mean().item() for each, right in pairs])
        step += 1
        if step % 100 == 0:
            print(f"{step} right {np.mean(hits, axis=0).round(3)} left {left:.2f}", flush=True)
            hits = []
    return average.state(model)


def load_classifier() -> Classifier:
    """The kept judge; as many concepts as its file has answers."""
    weights = {name: tensor.float() for name, tensor in load_file(JUDGE).items()}
    model = Classifier(len(weights["expert.emb.bias"]) - len(STYLE_NAMES))
    model.load_state_dict(weights)
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=39)
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    options = parser.parse_args()
    train(options.minutes, options.concepts)
