"""Step 14: the moving image at the top of the README, made by the bundled model and nothing else."""

from __future__ import annotations

from places import ROOT

import stillmotion as sm
from stillmotion.video import grid

PROMPTS = (
    "a rocket, 3d render style",
    "a butterfly, 3d render style",
    "an octopus, flat style",
    "a dog face, noto style",
    "an automobile, flat style",
    "a unicorn, 3d render style",
    "a guitar, noto style",
    "a red apple, 3d render style",
)
"""no animated guitar or apple was in the data, and no animation in the flat and noto styles"""
SEED = 7


def main() -> None:
    animator = sm.Animator.load()
    clips = [animator.animate(prompt, seed=SEED) for prompt in PROMPTS]
    target = ROOT / "docs" / "images" / "gallery.gif"
    target.parent.mkdir(parents=True, exist_ok=True)
    grid(clips, columns=4).save(target, overwrite=True)
    print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
