"""Step 11: what personalises the bundled model: two styles it never saw, one subject, eight camera moves.

Writes images with captions, then runs the package's own commands, each of which resumes:

    high-contrast, noto-v1    stillmotion train lora          stills of the first concepts in that style
    subject                   stillmotion train dreambooth    five images of noto-v1's cat, "sks cat face"
    zoom-in, ...              stillmotion train motion-lora   the move over stills that trained the base
    collect                   their files in fp16 into the model package
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import get_args

import torch
from concepts import STYLES, concepts, held_out
from PIL import Image
from places import BUNDLED, RUNS, WORK
from stages import ordered
from stills import load, over

from stillmotion import Lora
from stillmotion.datasets.camera_moves import MoveName

NEW_STYLES = {"high-contrast": "high contrast", "noto-v1": "classic noto"}
"""style of the art that the UNet never saw -> its word in captions"""
SUBJECT = ("1f63a", "1f63b", "1f63c", "1f640", "1f431")
"""grinning, heart-eyed, wry, weary cat and cat face of noto-v1: one character"""
SUBJECT_PROMPT, CLASS_PROMPT = "sks cat face", "cat face"
MOVES = get_args(MoveName)
WHOLE = ("--camera-variants=1", "--static-input-fraction=1", "--learning-rate=2e-3", "--max-train-steps=1500")
"""how a roll begins: all of it, at weight 1"""
IMAGES = WORK / "images"
HERE = Path(__file__).parent


def write_images(concept_count: int) -> None:
    """A folder of PNGs for each new style, captioned as the base was taught, one of the subject, and one of
    known stills for the camera.
    """
    pixels, rows = load()
    at = {(row["code"], row["style"]): i for i, row in enumerate(rows)}
    names = {concept.code: concept.name for concept in concepts()}
    first, words = ordered()[:concept_count], STYLES | NEW_STYLES
    known = [(c.code, style) for c, style in zip(first[::2], cycle(STYLES), strict=False)]
    wanted = [(style, c.code, style) for style in NEW_STYLES for c in first]
    wanted += [("subject", code, "noto-v1") for code in SUBJECT]
    wanted += [("camera", code, style) for code, style in known if not held_out(code, style)]
    for folder, code, style in (each for each in wanted if each[1:] in at):
        path = IMAGES / folder / f"{code}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(over(pixels[at[code, style]]).round().astype("uint8")).save(path)
        said = SUBJECT_PROMPT if folder == "subject" else f"{names[code]}, {words[style]} style"
        path.with_suffix(".txt").write_text(said + "\n", encoding="utf-8")


def commands(name: str) -> list[list[str]]:
    """The arguments of the runs of `stillmotion` that train this one; a roll takes two."""
    if name.startswith("roll"):
        before = RUNS / f"{name}-whole"
        after = ["--initial-lora", str(before / "motion-lora.safetensors")]
        return [[*filming("roll", name, before), *WHOLE], [*filming("roll", name, RUNS / name), *after]]
    if name in MOVES:
        return [filming("camera", name, RUNS / name)]
    given = ["--config", str(HERE / f"{name}.yaml"), "--output", str(RUNS / name)]
    if name in NEW_STYLES:
        return [["train", "lora", *given, "--images", str(IMAGES / name)]]
    prompts = ["--instance-prompt", SUBJECT_PROMPT, "--class-prompt", CLASS_PROMPT]
    return [["train", "dreambooth", *given, "--instance-images", str(IMAGES / name), *prompts]]


def filming(settings: str, move: str, output: Path) -> list[str]:
    """The arguments that train a motion LoRA of a camera move."""
    given = ["--config", str(HERE / f"{settings}.yaml"), "--output", str(output)]
    return ["train", "motion-lora", *given, "--videos", str(IMAGES / "camera"), "--camera", move]


def product(name: str) -> Path:
    """The file that training this one makes."""
    return RUNS / name / ("motion-lora.safetensors" if name in MOVES else "lora.safetensors")


def collect() -> None:
    """What has been trained, in fp16, under its name."""
    for name in (*NEW_STYLES, "subject", *MOVES):
        if product(name).exists():
            target = BUNDLED / "loras" / f"{name}.safetensors"
            Lora.load(product(name)).save(target, dtype=torch.float16)
            print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*NEW_STYLES, "subject", *MOVES, "collect"]
    parser.add_argument("names", nargs="*", choices=every, default=every)
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    options = parser.parse_args()
    write_images(options.concepts)
    for name in options.names:
        if name == "collect":
            collect()
        else:
            for command in commands(name):
                subprocess.run([sys.executable, "-m", "stillmotion", *command], check=True)


if __name__ == "__main__":
    main()
