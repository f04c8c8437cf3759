"""What users of other programs type, and what they mean here: names of flags, files in place of prompts."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click

from stillmotion.errors import RequestError
from stillmotion.sampling.latents import EXTENSION

FLAGS = {
    "--base": "--model --checkpoint --ckpt --pretrained-model --pretrained-model-name-or-path --sd",
    "--motion": "--motion-module --motion-model --motion-adapter --adapter --mm",
    "--frames": "--num-frames --n-frames --length --video-length --num-images",
    "--guidance-scale": "--cfg --cfg-scale --scale-guidance --guidance-weight",
    "--num-inference-steps": "--sampling-steps --num-steps --inference-steps --ddim-steps",
    "--negative-prompt": "--negative --neg --np",
    "--scheduler": "--sampler --sampler-name --sampling-method",
    "--width --height": "--size --resolution --dimensions --w --h",
    "--motion-scale": "--strength",
    "--output": "--out --outfile --output-dir --save --file",
    "--force": "--overwrite --yes --y",
    "--fps": "--frame-rate --framerate --rate",
    "--n": "--count --num --batch --batch-count --num-samples",
    "--embedding": "--textual-inversion --ti",
    "--learning-rate": "--lr --unet-lr --rate",
    "--max-train-steps": "--epochs --num-train-epochs --steps --max-steps --iterations --num-steps",
    "--train-batch-size": "--batch-size --batch --bs",
    "--resolution": "--size --width --height",
    "--rank": "--network-dim --dim --lora-rank --r",
    "--images": "--data --dataset --train-data-dir --instance-data-dir --image-dir",
    "--clips": "--data --dataset --videos --train-data-dir --video-dir",
}
"""Our flags (of which a command must have the first), and what other programs call them."""

MEDIA = [
    ".gif",
    ".webp",
    ".apng",
    ".png",
    ".mp4",
    ".webm",
    ".mov",
    ".mkv",
    ".avi",
    ".m4v",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
]
WEIGHTS = [".safetensors", ".ckpt", ".pt", ".pth", ".bin"]


def explain(error: click.NoSuchOption) -> str | None:
    """What the user may have meant by a flag that a command lacks; None if nothing comes to mind."""
    if error.ctx is None:
        return None
    there = {name for param in error.ctx.command.params for name in param.opts}
    typed = "--" + error.option_name.lstrip("-").lower().replace("_", "-")
    meant = [ours for ours, others in FLAGS.items() if ours.split()[0] in there and typed in others.split()]
    if typed in there:
        meant = [typed]
    if typed == "--prompt" and any(param.name == "prompt" for param in error.ctx.command.params):
        return f"There is no option {error.option_name}: the prompt stands by itself, in quotes."
    if not meant:
        return None
    return f"There is no option {error.option_name}; did you mean {' or '.join(meant)}?"


def dropped(text: str) -> str:
    """A path as a file manager drops it into a terminal: without quotes around it and without file://."""
    if os.path.lexists(text):
        return text
    for quote in "'\"":
        if len(text) > 2 and text.startswith(quote) and text.endswith(quote):
            text = text[1:-1]
    if text.lower().startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    return text


def refuse_file(prompt: str) -> None:
    """RequestError for a prompt that is the name of a file, with the commands that take it."""
    text = dropped(prompt.strip())
    path, suffix = Path(text), Path(text).suffix.lower()
    there = len(text) < 4096 and "\0" not in text and os.path.isfile(text)
    if not there and suffix not in (*MEDIA, *WEIGHTS):
        return
    name, kind = shlex.quote(text), "is a file" if there else "looks like the name of a file"
    if text.endswith(EXTENSION):
        use = f"`stillmotion decode {name}` makes the clip of it"
    elif suffix in WEIGHTS:
        use = f"`stillmotion inspect {name}` says what it is and how it is used"
    elif suffix in MEDIA:
        use = f"`stillmotion redo {name}` makes a clip again, `stillmotion sheet {name}` shows its frames"
    else:
        use = f'give the words in it: stillmotion animate "$(cat {name})"'
    raise RequestError(
        f'{path.name} {kind}, but animate takes a prompt, words such as "a rocket, 3d render style": {use}.'
    )
