"""Our clip against diffusers' AnimateDiffPipeline: same random SD 1.5-sized weights, same latents, same
process.

The rounds go A B A B, so that a machine whose speed drifts is fair to both; what counts is the ratio.
diffusers runs as its documentation loads it (float32) and again in bfloat16; ours chooses its precision by
itself.

    python benchmarks/clip_vs_diffusers.py --rounds 3 --output benchmarks/clip_vs_diffusers.md
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from stillmotion_emoji import FOLDER
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import stillmotion as sm
from stillmotion.runtime.precision import best_dtype

TOKENIZER = FOLDER / "tokenizer"


def parts(dtype: torch.dtype) -> dict:
    """The parts of an SD 1.5-sized model with random weights, the same for every dtype."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return {
        "unet": unet.to(dtype),
        "vae": vae.to(dtype),
        "text_encoder": text.to(dtype),
        "tokenizer": CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77),
        "scheduler": DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        ),
        "feature_extractor": None,
    }


def ours(motion_folder: Path, options: argparse.Namespace) -> Callable[[], None]:
    dtype = best_dtype("cpu")
    pipeline = StableDiffusionPipeline(**parts(dtype), safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    motion = sm.MotionModel.load(motion_folder)
    animator = sm.Animator(pipeline, motion)

    def run() -> None:
        animator.animate(
            "a dog runs",
            frames=options.frames,
            width=options.size,
            height=options.size,
            num_inference_steps=options.steps,
            seed=0,
        )

    return run


def theirs(motion_folder: Path, dtype: torch.dtype, options: argparse.Namespace) -> Callable[[], None]:
    adapter = MotionAdapter.from_pretrained(motion_folder, torch_dtype=dtype)
    pipeline = AnimateDiffPipeline(**parts(dtype), motion_adapter=adapter)
    pipeline.set_progress_bar_config(disable=True)

    def run() -> None:
        pipeline(
            "a dog runs",
            num_frames=options.frames,
            width=options.size,
            height=options.size,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(0),
        )

    return run


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """One uncounted round, then `rounds` counted ones, every contestant once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            print(f"round {round_number} {name}: {taken:.1f} s", flush=True)
            if round_number:
                seconds[name].append(taken)
    return seconds


def table(seconds: dict[str, list[float]], options: argparse.Namespace) -> str:
    reference = seconds["stillmotion"]
    rows = []
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, reference, strict=True)]
        rows.append(f"| {name} | {statistics.median(taken):.1f} | {statistics.median(ratios):.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return "\n".join(
        [
            f"SD 1.5-sized random weights, v3 motion layout, {options.frames} frames of "
            f"{options.size}x{options.size}, "
            f"{options.steps} DDIM steps with guidance, {torch.get_num_threads()} threads, "
            f"{platform.machine()}, torch {torch.__version__}, diffusers {diffusers.__version__}; "
            f"medians of {options.rounds} rounds in turn. "
            f"Peak memory of the whole comparison: {peak:.1f} GiB.",
            "",
            f"`python benchmarks/clip_vs_diffusers.py --rounds {options.rounds} --frames {options.frames} "
            f"--size {options.size} --steps {options.steps} --output benchmarks/clip_vs_diffusers.md`",
            "",
            "| | seconds | times ours |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "motion"
        sm.MotionModel.from_spec(sm.FAMILIES["sd15-v3"]).save(path)
        runs = {
            "stillmotion": ours(path, options),
            "diffusers AnimateDiffPipeline, float32 (its default)": theirs(path, torch.float32, options),
            "diffusers AnimateDiffPipeline, bfloat16": theirs(path, torch.bfloat16, options),
        }
        text = table(measure(runs, options.rounds), options)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
