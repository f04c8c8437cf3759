"""How few steps the bundled model needs: every sampler and number of steps against 25 steps of DDIM.

    python steps.py ddim:25 ddim:8 unipc:8      # the first one is what the others are measured against

100 prompts (training concepts, three styles in turn), one clip of 16 frames and one still each, the seed the
number of the prompt. Of each the judge says concept (top 5) and style of the still and of the frames;
"kept" is the share of frames that still show what the still showed; motion is the mean absolute difference
of neighbouring frames (0-255); PSNR is that of the frames against the first sampler's. Every clip is a line
of `steps.jsonl` as soon as it is made, so a stopped run goes on. Needs step 1 of the recipe, no pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from concepts import STYLES, Concept
from evaluate import Judge, motion_of, say
from places import RUNS
from stages import ordered

import stillmotion as sm

ROWS = RUNS / "evaluation" / "steps.jsonl"
MEASURES = ("concept", "style", "kept", "motion")


def prompts(count: int, concepts: int) -> list[tuple[Concept, str]]:
    """(concept, style) pairs, spread over the first `concepts` concepts."""
    chosen = np.linspace(0, concepts - 1, count).round().astype(int)
    styles = list(STYLES)
    return [(ordered()[place], styles[number % len(styles)]) for number, place in enumerate(chosen)]


def psnr(frames: np.ndarray, reference: np.ndarray) -> float:
    """dB of uint8 frames against others of the same shape."""
    error = np.square(frames.astype(np.float32) - reference.astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def measure(
    animator: sm.Animator, judge: Judge, sampler: str, number: int, pair: tuple[Concept, str]
) -> dict:
    """One row: what the judge says of the clip and the still of a prompt; keeps the frames beside."""
    scheduler, steps = sampler.split(":")
    options = {"seed": number, "scheduler": scheduler, "num_inference_steps": int(steps)}
    prompt = say(*pair)
    frames = animator.animate(prompt, **options).frames
    still = animator.animate(prompt, frames=1, **options).frames
    known, styled = judge(frames, pair[0].code, pair[1])
    still_known, still_styled = judge(still, pair[0].code, pair[1])
    folder = ROWS.parent / "steps"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{sampler.replace(':', '-')}-{number:03d}.npz", frames=frames)
    return {
        "sampler": sampler,
        "prompt": number,
        "text": prompt,
        "concept": float(still_known[0]),
        "style": float(np.mean([float(still_styled[0]), float(styled.float().mean())])),
        "kept": float(known.float().mean()) if still_known[0] else None,
        "motion": motion_of(frames),
    }


def frames_of(sampler: str, number: int) -> np.ndarray:
    return np.load(ROWS.parent / "steps" / f"{sampler.replace(':', '-')}-{number:03d}.npz")["frames"]


def table(rows: list[dict], samplers: list[str]) -> str:
    """Markdown: means over the prompts that all samplers have, and how far they lie from the first's."""
    shared = set.intersection(*({r["prompt"] for r in rows if r["sampler"] == s} for s in samplers))
    lines = [f"{len(shared)} prompts\n", "| sampler | concept | style | kept | motion | PSNR | within 2% |"]
    lines.append("| --- " * 7 + "|")
    means: dict[str, dict[str, float]] = {}
    for sampler in samplers:
        own = [r for r in rows if r["sampler"] == sampler and r["prompt"] in shared]
        means[sampler] = {
            name: float(np.mean([r[name] for r in own if r[name] is not None])) for name in MEASURES
        }
        first, mine = means[samplers[0]], means[sampler]
        near = all(abs(mine[name] / max(first[name], 1e-9) - 1) <= 0.02 for name in MEASURES)
        same = sampler == samplers[0]
        db = (
            np.mean([psnr(frames_of(sampler, n), frames_of(samplers[0], n)) for n in shared])
            if not same
            else 0
        )
        cells = [sampler, *(f"{100 * mine[n]:.1f}%" for n in MEASURES[:3])]
        cells += [f"{mine['motion']:.3f} ({100 * (mine['motion'] / first['motion'] - 1):+.1f}%)"]
        cells += ["" if same else f"{db:.1f} dB", "yes" if near else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(samplers: list[str], count: int, concepts: int) -> None:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {(row["sampler"], row["prompt"]) for row in rows}
    animator, judge = sm.Animator.load(), Judge()
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(prompts(count, concepts)):
        for sampler in samplers:
            if (sampler, number) not in done:
                rows.append(measure(animator, judge, sampler, number, pair))
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    text = table(rows, samplers)
    Path(ROWS.parent / "steps.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samplers", nargs="+", help="NAME:STEPS, the reference first")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--concepts", type=int, default=300, help="as many as base.py was given")
    options = parser.parse_args()
    main(options.samplers, options.prompts, options.concepts)
