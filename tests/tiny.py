"""Tiny diffusers pipelines with seeded random weights: real architectures, no downloads, fast.

`from tiny import tiny_pipeline` works in every test (tests/conftest.py puts this folder on the path).

    kind="sd15"   StableDiffusionPipeline     8x8 latents of 16x16 pixels, UNet (32, 64), layers (1, 1)
    kind="sdxl"   StableDiffusionXLPipeline   the same with two text encoders and size conditioning

Random weights give no images, but every number is a function of every input, all that tests need.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from stillmotion.motion.config import MotionConfig
from stillmotion.motion.families import family_of_config

if TYPE_CHECKING:
    from stillmotion.motion.module import MotionModules

Kind = Literal["sd15", "sdxl"]

CHANNELS = (32, 64)
PIXELS_PER_LATENT = 2
SIZE = 16
WORDS = ("a", "rocket", "cat", "dog", "red", "blue", "house", "apple", "style", "render", "spring", "winter")

TINY_MOTION = MotionConfig(
    "tiny",
    channels=CHANNELS,
    layers=(1, 1),
    heads=(4, 4),
    mid=True,
    positions=32,
    norm_groups=8,
)
"""The shape of motion that fits the UNets of this file (both kinds)."""

TINY_FAMILY = family_of_config(TINY_MOTION).updated(
    num_inference_steps=2, guidance_scale=3.0, frames=4, width=SIZE, height=SIZE
)
"""The same with what it was trained for."""


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's and GPT-2's byte-level BPE use."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with the alphabet and a dozen words; 77 tokens long, built without any file.

    Not from files: transformers 5 silently ignores `vocab_file=` and `merges_file=` (two tokens remain).
    """
    alphabet = _byte_alphabet()
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            if (left, right) not in merges:
                merges.append((left, right))
                pieces.append(left + right)
            left += right
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    vocab["<|startoftext|>"], vocab["<|endoftext|>"] = len(vocab), len(vocab) + 1
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def tiny_unet(kind: Kind = "sd15", seed: int = 0, **overrides) -> UNet2DConditionModel:
    """A stock UNet of two levels, (32, 64) channels, one layer per block; `overrides` go into its config."""
    config: dict = {
        "sample_size": SIZE // PIXELS_PER_LATENT,
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    if kind == "sdxl":
        config |= {
            "cross_attention_dim": 64,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**(config | overrides)).eval()


def tiny_vae(seed: int = 0, latent_channels: int = 4) -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=latent_channels,
            norm_num_groups=8,
            sample_size=SIZE,
        ).eval()


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=77,
    )


def tiny_scheduler(**overrides) -> DDIMScheduler:
    """DDIM as Stable Diffusion 1.5 ships it (scaled_linear betas: motion needs linear ones)."""
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(config | overrides))


def tiny_pipeline(
    kind: Kind = "sd15", seed: int = 0, folder: str | Path | None = None
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A complete pipeline with random weights; saved into `folder` as well when one is given."""
    tokenizer = tiny_tokenizer()
    text = _text_config(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "vae": tiny_vae(seed),
            "unet": tiny_unet(kind, seed),
            "scheduler": tiny_scheduler(),
            "tokenizer": tokenizer,
            "text_encoder": CLIPTextModel(text).eval(),
        }
        if kind == "sdxl":
            parts |= {
                "tokenizer_2": tiny_tokenizer(),
                "text_encoder_2": CLIPTextModelWithProjection(text).eval(),
            }
            pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            pipeline = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
    pipeline.set_progress_bar_config(disable=True)
    if folder is not None:
        pipeline.save_pretrained(folder)
    return pipeline


def tiny_motion(seed: int = 1, **overrides) -> MotionModules:
    """A motion net that fits the UNets of this file and does something: no weight is zero, proj_out included.

    `overrides` change columns of TINY_FAMILY (mid=False, positions=24, motion_norm="pooled", ...).
    """
    from stillmotion.motion.module import MotionModules

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        motion = MotionModules(TINY_FAMILY.updated(**overrides)).eval()
        for name, parameter in motion.named_parameters():
            spread = 0.3 if "proj_out" in name else 0.1
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=spread)
    return motion.requires_grad_(False)


def tiny_lora(
    kind: Kind = "sd15", scheme: Literal["peft", "processor"] = "peft", rank: int = 2, spread: float = 0.5
) -> dict[str, torch.Tensor]:
    """A random LoRA on every attention of `tiny_unet`; "processor" is the scheme of the v3 domain adapter."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, layer in tiny_unet(kind).named_modules():
        if "attn" not in name or not name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            continue
        down = torch.randn(rank, layer.in_features, generator=generator) * spread
        up = torch.randn(layer.out_features, rank, generator=generator) * spread
        if scheme == "peft":
            state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        else:
            block, _, part = name.removesuffix(".0").rpartition(".")
            key = f"{block}.processor.{part}_lora"
            state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return state
