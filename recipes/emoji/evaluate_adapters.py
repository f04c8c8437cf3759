"""Step 12: what the LoRAs of the bundled model do, measured, and the figure of styles against frames.

    styles     with the LoRA on: style and concept of stills and of clips, and whether clips still move
    subject    "sks cat face" with the LoRA is nearer to the subject's images than to other cats'
    cameras    the move that dense optical flow finds in clips with each camera LoRA; at half weight; at none
    figure     rows = base, two styles, subject; columns = frames of one prompt

Adds to `adapters.json` beside the run; card.py turns it into rows of the model card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from adapters import CLASS_PROMPT, IMAGES, MOVES, NEW_STYLES, SUBJECT_PROMPT
from assemble import DEFAULTS
from classifier import small
from concepts import STYLES, concepts
from evaluate import OUT, Judge, motion_of, say, sheet
from PIL import Image
from places import BUNDLED
from stages import ordered
from stills import load, over

import stillmotion as sm
from stillmotion.metrics.camera_motion import NAMES, camera_of

LORAS = BUNDLED / "loras"
FIGURE_PROMPT = "butterfly"
STEPS = 12
"""denoising steps of the clips measured here"""
HALVES = 10
"""prompts whose clips are also made at half the weight"""


def animator(name: str | None = None, weight: float = 1.0) -> sm.Animator:
    """The bundled model, with one of its LoRAs."""
    loras = {str(LORAS / f"{name}.safetensors"): weight} if name else {}
    return sm.Animator.load(**{"motion_loras" if name in MOVES else "loras": loras})


def there(wanted: dict[str, str]) -> dict[str, str]:
    """Those of the wanted LoRAs that are bundled."""
    return {name: words for name, words in wanted.items() if (LORAS / f"{name}.safetensors").exists()}


def spread(count: int, most: int) -> list:
    """`count` of the first `most` concepts, the same each time."""
    first = ordered()[:most]
    return [first[i] for i in sorted(np.random.default_rng(5).permutation(len(first))[:count])]


def styles(judge: Judge, names: list[str], most: int, stills: int, clips: int) -> dict[str, dict[str, float]]:
    """Each new style: stills, then clips beside those of the base on the same prompts."""
    plain, found = animator(), {}
    for style, word in there({name: NEW_STYLES[name] for name in names}).items():
        styled, marks, images = animator(style), [], []
        for concept in spread(stills, most):
            still = styled.animate(f"{concept.name}, {word} style", seed=3, frames=1).frames
            images.append(still[0])
            marks.append([mark.item() for mark in judge(still, concept.code, style)])
        sheet(np.stack(images), f"lora-{style}")
        moved, in_style, kept, rows = [], [], [], []
        for concept in spread(clips, most):
            options = {"seed": 3, "num_inference_steps": STEPS}
            clip = styled.animate(f"{concept.name}, {word} style", **options).frames
            base = plain.animate(say(concept, "fluent-3d"), **options).frames
            known, styled_frames = judge(clip, concept.code, style)
            moved.append((motion_of(clip), motion_of(base)))
            in_style.append(styled_frames.float().mean().item())
            kept.append(known.float().mean().item())
            rows.append(clip[::2])
        sheet(np.concatenate(rows), f"lora-clips-{style}", columns=16)
        ours, theirs = np.mean(moved, axis=0)
        found[style] = {
            "stills_style": float(np.mean([s for _, s in marks])),
            "stills_concept": float(np.mean([c for c, _ in marks])),
            "clips_style": float(np.mean(in_style)),
            "clips_concept": float(np.mean(kept)),
            "motion": float(ours),
            "motion_of_base": float(theirs),
            "stills": stills,
            "clips": clips,
        }
        print(style, found[style], flush=True)
    return found


@torch.no_grad()
def features(judge: Judge, frames: np.ndarray) -> torch.Tensor:
    """(n, c) unit vectors: what the judge sees before it names anything."""
    x = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.normalize(judge.model.expert.features(small(x)), dim=1)


def subject(judge: Judge, count: int) -> dict[str, float]:
    """How often what is drawn is nearer to the subject's images than to others of its class."""
    own = np.stack([np.asarray(Image.open(path)) for path in sorted((IMAGES / "subject").glob("*.png"))])
    pixels, rows = load()
    cats = {concept.code for concept in concepts() if "cat" in concept.name.split()}
    others = [i for i, row in enumerate(rows) if row["code"] in cats and row["style"] in STYLES]
    centres = [
        features(judge, own),
        features(judge, np.stack([over(pixels[i]).astype("uint8") for i in others])),
    ]
    taught, found = animator("subject"), {}
    for name, prompt in (("subject", SUBJECT_PROMPT), ("class", CLASS_PROMPT)):
        drawn = np.concatenate([taught.animate(prompt, seed=k, frames=1).frames for k in range(count)])
        sheet(drawn, f"lora-{name}")
        near = [(features(judge, drawn) @ centre.T).amax(1) for centre in centres]
        found[f"{name}_nearer_to_subject"] = (near[0] > near[1]).float().mean().item()
    print(found, flush=True)
    return found


def cameras(
    moves: list[str], prompts: int, most: int, options: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Each move: how often the flow names it, and what half the weight and none do to a few prompts."""
    found = {}
    wanted = [
        (say(concept, list(STYLES)[number % len(STYLES)]), number)
        for number, concept in enumerate(spread(prompts, most))
    ]
    for move in moves:
        kind = next(name for name, pair in NAMES.items() if move in pair)
        whole = drawn(move, 1.0, wanted, options)
        fits = [camera_of(clip) for clip in whole]
        sheet(np.concatenate([clip[::4] for clip in whole]), f"camera-{move}", columns=20)
        found[move] = {
            "right": float(np.mean([fit.dominant == move for fit in fits])),
            kind: float(np.mean([getattr(fit, kind) for fit in fits])),
            "half": half_of(move, kind, [getattr(fit, kind) for fit in fits], wanted[:HALVES], options),
            "prompts": prompts,
            "halves": HALVES,
            "steps": options["num_inference_steps"],
            "guidance": options["guidance_scale"],
        }
        print(move, found[move], flush=True)
    return found


def half_of(move: str, kind: str, whole: list[float], wanted: list[tuple[str, int]], options: dict) -> float:
    """The move at weight 0.5 as a part of that at 1, both above none; refuses a weight 0 that does
    anything.
    """
    rest, half = drawn(None, 1.0, wanted, options), drawn(move, 0.5, wanted, options)
    if not np.array_equal(drawn(move, 0.0, wanted[:1], options)[0], rest[0]):
        raise SystemExit(f"{move} at weight 0 changes {wanted[0][0]!r}.")
    rest, half = (np.mean([getattr(camera_of(clip), kind) for clip in clips]) for clips in (rest, half))
    return float((half - rest) / (np.mean(whole[: len(wanted)]) - rest))


def drawn(name: str | None, weight: float, wanted: list[tuple[str, int]], options: dict) -> list[np.ndarray]:
    """Frames for each (prompt, seed), with one LoRA or none."""
    maker = animator(name, weight)
    return [maker.animate(prompt, seed=seed, **options).frames for prompt, seed in wanted]


def figure(path: Path) -> Path:
    """One prompt, moving: the base, the new styles that there are, and the subject."""
    rows = [animator().animate(f"{FIGURE_PROMPT}, 3d render style", seed=7).frames]
    rows += [
        animator(s).animate(f"{FIGURE_PROMPT}, {word} style", seed=7).frames
        for s, word in there(NEW_STYLES).items()
    ]
    rows.append(animator("subject").animate(SUBJECT_PROMPT, seed=7).frames)
    columns = np.linspace(0, 15, 8).round().astype(int)
    Image.fromarray(np.concatenate([np.concatenate(row[columns], 1) for row in rows])).save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["styles", "subject", "cameras", "figure"])
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    parser.add_argument("--styles", nargs="+", choices=NEW_STYLES, default=[*NEW_STYLES])
    parser.add_argument("--stills", type=int, default=100)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=40, help="for each camera move")
    parser.add_argument("--moves", nargs="+", choices=MOVES, default=[*there(dict.fromkeys(MOVES, ""))])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the clips with a camera move")
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance_scale"], help="of those clips")
    options = parser.parse_args()
    path = OUT / "adapters.json"
    OUT.mkdir(parents=True, exist_ok=True)
    filming = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    work = {
        "styles": lambda: styles(Judge(), options.styles, options.concepts, options.stills, options.clips),
        "subject": lambda: subject(Judge(), 20),
        "cameras": lambda: cameras(options.moves, options.prompts, options.concepts, filming),
        "figure": lambda: {"file": figure(OUT / "styles.png").name},
    }
    for part in options.parts:
        fresh = work[part]()
        found = json.loads(path.read_text()) if path.exists() else {}  # another may have written meanwhile
        found[part] = (found.get(part) or {}) | fresh
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
