"""Step 11: what personalises the bundled model: two styles it never saw, one subject, eight camera moves.

Writes pictures with captions, then runs the package's own commands, each of which resumes:

    high-contrast, noto-v1    stillmotion train lora          stills of the first concepts in that style
    subject                   stillmotion train dreambooth    five pictures of noto-v1's cat, "sks cat face"
    zoom-in, ...              stillmotion train motion-lora   the move over clips that trained the motion
    collect                   their files in fp16 into bundled/emoji/loras
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import get_args

import torch
from concepts import concepts
from PIL import Image
from places import BUNDLED, CLIPS, RUNS, WORK
from stages import ordered
from stills import load, over

from stillmotion import Lora
from stillmotion.data.moves import Move

NEW_STYLES = {"high-contrast": "high contrast", "noto-v1": "classic noto"}
"""style of the art that the UNet never saw -> its word in captions"""
SUBJECT = ("1f63a", "1f63b", "1f63c", "1f640", "1f431")
"""grinning, heart-eyed, wry, weary cat and cat face of noto-v1: one character"""
SUBJECT_PROMPT, CLASS_PROMPT = "sks cat face", "cat face"
MOVES = get_args(Move)
PICTURES = WORK / "pictures"
HERE = Path(__file__).parent


def write_pictures(concept_count: int) -> None:
    """A folder of PNGs for each new style, captioned as the base was taught, and one of the subject."""
    pixels, rows = load()
    at = {(row["code"], row["style"]): i for i, row in enumerate(rows)}
    names = {concept.code: concept.name for concept in concepts()}
    wanted = [(style, c.code) for style in NEW_STYLES for c in ordered()[:concept_count]]
    wanted = [(style, code, style) for style, code in wanted if (code, style) in at]
    wanted += [("subject", code, "noto-v1") for code in SUBJECT]
    for folder, code, style in wanted:
        path = PICTURES / folder / f"{code}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(over(pixels[at[code, style]]).round().astype("uint8")).save(path)
        said = SUBJECT_PROMPT if folder == "subject" else f"{names[code]}, {NEW_STYLES[style]} style"
        path.with_suffix(".txt").write_text(said + "\n", encoding="utf-8")


def command(name: str) -> list[str]:
    """The arguments of `stillmotion` that train this one."""
    output = ["--output", str(RUNS / name)]
    if name in NEW_STYLES:
        return [
            "train",
            "lora",
            "--config",
            str(HERE / "lora.yaml"),
            "--images",
            str(PICTURES / name),
            *output,
        ]
    if name == "subject":
        prompts = ["--instance-prompt", SUBJECT_PROMPT, "--class-prompt", CLASS_PROMPT]
        images = ["--instance-images", str(PICTURES / name)]
        return ["train", "dreambooth", "--config", str(HERE / "dreambooth.yaml"), *images, *prompts, *output]
    clips = ["--videos", str(camera_clips()), "--camera", name]
    return ["train", "motion-lora", "--config", str(HERE / "camera.yaml"), *clips, *output]


def camera_clips(count: int = 40) -> Path:
    """A list of the first few training clips: each has to be filmed and encoded."""
    lines = (CLIPS / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = CLIPS / "camera.jsonl"
    path.write_text("".join(lines[:count]), encoding="utf-8")
    return path


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
    every = (*NEW_STYLES, "subject", *MOVES)
    parser.add_argument("names", nargs="*", choices=[*every, "collect"], default=[*every, "collect"])
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    options = parser.parse_args()
    write_pictures(options.concepts)
    for name in options.names:
        if name == "collect":
            collect()
        else:
            subprocess.run([sys.executable, "-m", "stillmotion", *command(name)], check=True)


if __name__ == "__main__":
    main()
