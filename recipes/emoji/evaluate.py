"""Step 10: what the bundled model can do, measured, and looked at on contact sheets.

    judge    what the judge itself makes of real images that it never saw, as the VAE gives them back
    vae      PSNR on held-out stills
    stills   concept in the judge's top 5, style right: training concepts, and held-out (concept, style) pairs
    clips    motion (mean absolute difference of neighbouring frames) and order against the real clips',
             concept kept

Writes `evaluation.json` and sheets beside the run; card.py turns them into the model card.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from base import latents
from classifier import STYLE_NAMES, known_codes, load_classifier, never_shown
from concepts import STYLES, Concept, held_out
from diffusers import AutoencoderKL
from PIL import Image
from places import BUNDLED, CLIPS, RUNS
from stages import ordered
from stills import load, over
from torch import Tensor
from vae import Images, psnr

import stillmotion as sm
from stillmotion.diffusion.vae import decode_frames, scaled_encode
from stillmotion.video import open_frames

OUT = RUNS / "evaluation"
UNANIMATED = (
    "red apple",
    "guitar",
    "house",
    "hamburger",
    "banana",
    "light bulb",
    "umbrella",
    "key",
    "castle",
    "pizza",
)
KINDS = ("trained", "held_out", "unanimated")


def say(concept: Concept, style: str) -> str:
    return f"{concept.name}, {STYLES[style]} style"


class Judge:
    """The classifier, asked about images; of a concept that it does not know it says nothing."""

    def __init__(self) -> None:
        self.model = load_classifier()
        self.index = known_codes(self.model.concept_count)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, code: str, style: str) -> tuple[Tensor | None, Tensor]:
        """Per frame of (F, 128, 128, 3) uint8: concept in the top 5, style right."""
        x = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        concept, kind = self.model(x)
        known = (concept.topk(5).indices == self.index[code]).any(1) if code in self.index else None
        return known, kind.argmax(1) == STYLE_NAMES.index(style)


def still_batch(animator: sm.Animator, wanted: list[tuple[Concept, str]]) -> np.ndarray:
    """One still for each (concept, style): (N, 128, 128, 3) uint8, by the bundled defaults."""
    pipe, found = animator.pipeline, []
    options = {name: animator.defaults[name] for name in ("num_inference_steps", "guidance_scale")}
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(wanted), 25):
        prompts = [say(*pair) for pair in wanted[start : start + 25]]
        generator = torch.Generator().manual_seed(start)
        latents = pipe(prompts, generator=generator, output_type="latent", **options).images
        found.append(decode_frames(pipe.vae, latents))
    return np.concatenate(found)


def score(judge: Judge, images: np.ndarray, wanted: list[tuple[Concept, str]]) -> dict[str, float]:
    marks = [judge(p[None], c.code, s) for p, (c, s) in zip(images, wanted, strict=True)]
    return {
        "concept_top5": float(np.mean([m[0].item() for m in marks])),
        "style": float(np.mean([m[1].item() for m in marks])),
        "count": len(wanted),
    }


def sheet(images: np.ndarray, name: str, columns: int = 20, size: int = 64) -> None:
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (size + 2), rows * (size + 2)), "white")
    for k, image in enumerate(images):
        small_image = Image.fromarray(image).resize((size, size), Image.BOX)
        page.paste(small_image, ((k % columns) * (size + 2), (k // columns) * (size + 2)))
    OUT.mkdir(parents=True, exist_ok=True)
    page.save(OUT / f"{name}.png")


def motion_of(frames: np.ndarray, apart: int = 1) -> float:
    """Mean absolute difference (0-255) of frames that are `apart`; 1: neighbours."""
    frames = frames.astype(np.float32)
    return float(np.abs(frames[apart:] - frames[:-apart]).mean())


def order_of(frames: np.ndarray) -> float:
    """Neighbours' difference over that of frames 4 apart: 1 for flicker, the less the smoother the motion."""
    return motion_of(frames) / max(motion_of(frames, 4), 1e-6)


def stills(animator: sm.Animator, judge: Judge, count: int) -> dict[str, dict[str, float]]:
    """Training concepts and held-out pairs, among the first `count` concepts."""
    known = {(s.concept.code, s.style) for s in latents()[0]}
    first = ordered()[:count]
    rng = np.random.default_rng(0)
    trained = [[(c, s) for s in STYLES if (c.code, s) in known] for c in first]
    trained = [pairs[i % len(pairs)] for i, pairs in enumerate(trained) if pairs]
    trained = [trained[i] for i in sorted(rng.permutation(len(trained))[:200])]
    unseen = [(c, s) for c in first for s in STYLES if held_out(c.code, s)]
    unseen = [unseen[i] for i in sorted(rng.permutation(len(unseen))[:100])]
    found = {}
    for name, wanted in (("training", trained), ("held_out", unseen)):
        images = still_batch(animator, wanted)
        sheet(images, name)
        found[name] = score(judge, images, wanted)
        print(name, found[name], flush=True)
    return found


def against_real(
    animator: sm.Animator, judge: Judge, wanted: list[Concept], part: str
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Clips of concepts that have a real one in `part`: motion beside it, concept kept or lost."""
    ratios, orders, kept, rows = [], [], [], []
    for concept in wanted:
        prompt = say(concept, "fluent-3d")
        clip, still = animator.animate(prompt, seed=7), animator.animate(prompt, seed=7, frames=1)
        source = open_frames(CLIPS / part / f"{concept.code}.webp")
        real = source.frames([3 * i % len(source) for i in range(16)])
        small_real = np.stack([np.asarray(Image.fromarray(f).resize((128, 128), Image.BOX)) for f in real])
        ratios.append(motion_of(clip.frames) / motion_of(small_real))
        orders.append((order_of(clip.frames), order_of(small_real)))
        if judge(still.frames, concept.code, "fluent-3d")[0].item():
            kept.append(judge(clip.frames, concept.code, "fluent-3d")[0].float().mean().item())
        rows.append(clip.frames[::2])
    found = {
        "motion_ratio_median": float(np.median(ratios)),
        "motion_within_factor_2": float(np.mean([0.5 <= r <= 2 for r in ratios])),
        "order": float(np.median([ours for ours, _ in orders])),
        "order_real": float(np.median([theirs for _, theirs in orders])),
        "concept_kept": float(np.mean(kept)) if kept else 0.0,
        "clips": len(ratios),
    }
    return found, rows


def clips(
    animator: sm.Animator, judge: Judge, count: int, most: int, kinds: list[str]
) -> dict[str, dict[str, float]]:
    """Concepts animated in training, concepts whose clip was held out, and concepts without any animation."""
    first, found = ordered()[:count], {}
    trained = [c for c in first if (CLIPS / "train" / f"{c.code}.webp").exists()]
    trained = [trained[i] for i in sorted(np.random.default_rng(1).permutation(len(trained))[:most])]
    held = [c for c in first if (CLIPS / "held-out" / f"{c.code}.webp").exists()][:most]
    for name, wanted, part in (("trained", trained, "train"), ("held_out", held, "held-out")):
        if name in kinds:
            found[name], rows = against_real(animator, judge, wanted, part)
            sheet(np.concatenate(rows), f"clips-{name}", columns=16)
    if "unanimated" in kinds:
        found["unanimated"] = without_real(animator, [c for c in first if c.name in UNANIMATED])
    return found


def without_real(animator: sm.Animator, wanted: list[Concept]) -> dict[str, float]:
    """Clips of concepts that have no real one: whether they move, and how smoothly."""
    drawn = [animator.animate(say(concept, "fluent-3d"), seed=7).frames for concept in wanted]
    sheet(np.concatenate([frames[::2] for frames in drawn]), "clips-unanimated", columns=8)
    moved = [motion_of(frames) for frames in drawn]
    return {
        "motion_mean": float(np.mean(moved)),
        "motion_min": float(np.min(moved)),
        "order": float(np.median([order_of(frames) for frames in drawn])),
    }


def of_the_judge(judge: Judge, most: int = 200) -> dict[str, float]:
    """The judge on real images as the VAE gives them back: generated ones cannot be expected to do better.

    Styles of all five, on stills that it learnt from and on stills that were kept back from it; concepts on
    the first frames of real clips, which it never saw.
    """
    (pixels, rows), found = load(), {}
    for name, codes in (("seen", judge.index), ("unseen", never_shown(len(judge.index)))):
        chosen = [i for i, row in enumerate(rows) if row["code"] in codes]
        chosen = sorted(np.random.default_rng(2).permutation(chosen)[:most])
        back = through_vae(np.stack([over(pixels[i]) for i in chosen]))
        pairs = [(image[None], rows[i]) for image, i in zip(back, chosen, strict=True)]
        right = [judge(image, row["code"], row["style"])[1].item() for image, row in pairs]
        found[f"style_{name}"] = float(np.mean(right))
    files = [CLIPS / part / f"{code}.webp" for code in judge.index for part in ("train", "held-out")]
    files = [file for file in files if file.exists()][:most]
    first = [Image.fromarray(open_frames(file).frames([0])[0]).resize((128, 128)) for file in files]
    back = through_vae(np.stack([np.asarray(image) for image in first]))
    known = [judge(p[None], file.stem, "fluent-3d")[0].item() for p, file in zip(back, files, strict=True)]
    return found | {"concept_top5_clips": float(np.mean(known)), "count": most}


@torch.no_grad()
def through_vae(images: np.ndarray) -> np.ndarray:
    """(n, 128, 128, 3) as the VAE gives them back, uint8."""
    vae = AutoencoderKL.from_pretrained(BUNDLED / "vae", torch_dtype=torch.float32)
    found = []
    for part in torch.from_numpy(images).float().permute(0, 3, 1, 2).div(127.5).sub(1).split(20):
        found.append(decode_frames(vae, scaled_encode(vae, part)))
    return np.concatenate(found)


def main(count: int, parts: list[str], most: int, kinds: list[str]) -> None:
    judge, animator = Judge(), sm.Animator.load()
    path, found = OUT / "evaluation.json", {"concepts": count}
    if "judge" in parts:
        found["judge"] = of_the_judge(judge)
        print("judge", found["judge"], flush=True)
    if "vae" in parts:
        vae = AutoencoderKL.from_pretrained(BUNDLED / "vae", torch_dtype=torch.float32)
        found["vae"] = {"psnr_held_out": psnr(vae, Images().held_out(10**6))}
    if "stills" in parts:
        found["stills"] = stills(animator, judge, count)
    if "clips" in parts:
        found["clips"] = clips(animator, judge, count, most, kinds)
    OUT.mkdir(parents=True, exist_ok=True)
    if path.exists():  # read now: another part may have been measured at the same time
        before = json.loads(path.read_text())
        found["clips"] = before.get("clips", {}) | found.get("clips", {})
        found = before | found
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    parser.add_argument("--parts", nargs="+", default=["judge", "vae", "stills", "clips"])
    parser.add_argument("--clips", type=int, default=30, help="at most so many of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of clips")
    options = parser.parse_args()
    main(options.concepts, options.parts, options.clips, options.kinds)
