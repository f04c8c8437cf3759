"""Foreign files of weights, mutated: each is accepted or ends in one sentence of ours; nothing else happens.

`STILLMOTION_FUZZ=10000 pytest tests/fuzz` tries more; the inputs are the same for the same number.
"""

from __future__ import annotations

import io
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from mutate import hostile_pickles, mutated_json, mutated_safetensors, mutated_torch, safetensors
from tiny import TINY_MOTION

from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.motion_families import METADATA_KEY, family_to_json
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Damaged, StillmotionError
from stillmotion.motion.families import family_of_config

ROUNDS = int(os.environ.get("STILLMOTION_FUZZ", "25"))

SPEC = replace(TINY_MOTION, channels=(8,), layers=(1,), heads=(2,), norm_groups=2)
LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k."
SEEDS = {
    "motion": (SPEC.shapes(), {METADATA_KEY: family_to_json(family_of_config(SPEC))}),
    "motion without our metadata": (SPEC.shapes(), None),
    "whole unet": ({"conv_in.weight": (8, 4, 3, 3), **SPEC.shapes()}, {"format": "pt"}),
    "lora": (
        {f"{LORA}lora_down.weight": (2, 8), f"{LORA}lora_up.weight": (8, 2), f"{LORA}alpha": ()},
        {"ss_network_dim": "2", "ss_tag_frequency": '{"1_x": {"sks": 3}}', "modelspec.title": "x"},
    ),
    "embedding": ({"clip_l": (2, 8), "clip_g": (2, 12)}, None),
    "checkpoint": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
            "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        },
        None,
    ),
    "unet": (
        {
            "down_blocks.0.resnets.0.norm1.weight": (8,),
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (8, 768),
        },
        None,
    ),
}
READERS: tuple[Callable[[Path], object], ...] = (
    lambda path: identify(path).describe(),
    MotionModel.load,
    read_embedding,
)


def _try(file: Path) -> int:
    """How many readers refuse the file, each in one short sentence; any other exception is the fault."""
    refused = 0
    for read in READERS:
        try:
            read(file)
        except StillmotionError as error:
            refused += 1
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
    return refused


@pytest.mark.parametrize("seed", SEEDS)
def test_safetensors(seed: str, tmp_path: Path) -> None:
    shapes, metadata = SEEDS[seed]
    good, rng = safetensors(shapes, metadata), random.Random(seed)
    file = tmp_path / "x.safetensors"
    file.write_bytes(good)
    assert _try(file) < len(READERS)  # what is mutated is good
    for _ in range(ROUNDS):
        file.write_bytes(mutated_safetensors(good, rng))
        _try(file)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("seed", ["motion", "lora", "embedding"])
def test_torch_files(seed: str, zipped: bool, tmp_path: Path) -> None:
    out = io.BytesIO()
    state = {name: torch.zeros(shape) for name, shape in SEEDS[seed][0].items()}
    torch.save({"state_dict": state, "epoch": 3}, out, _use_new_zipfile_serialization=zipped)
    good, rng, file = out.getvalue(), random.Random(seed), tmp_path / "x.ckpt"
    for _ in range(ROUNDS):
        file.write_bytes(mutated_torch(good, rng))
        _try(file)


def test_config_of_a_motion_folder(tmp_path: Path) -> None:
    folder = MotionModel(SPEC).save(tmp_path / "motion")
    good, rng = (folder / "config.json").read_bytes(), random.Random("config")
    for _ in range(ROUNDS):
        (folder / "config.json").write_bytes(mutated_json(good, rng))
        _try(folder)


def test_metadata_of_ours(tmp_path: Path) -> None:
    rng, file = random.Random("metadata"), tmp_path / "x.safetensors"
    for _ in range(ROUNDS):
        text = mutated_json(family_to_json(family_of_config(SPEC)).encode(), rng).decode("utf-8", "replace")
        file.write_bytes(safetensors(SPEC.shapes(), {METADATA_KEY: text}))
        _try(file)


@pytest.mark.parametrize("number", range(len(hostile_pickles())))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_hostile_pickles_run_nothing(number: int, suffix: str, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / f"x{suffix}"
    file.write_bytes(hostile_pickles(str(trace))[number])
    with pytest.raises(StillmotionError):
        identify(file)
    assert not trace.exists()


def test_a_header_of_a_million_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = b"{" + b" " * (2**24 + 1) + b"}"
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Damaged, match="has a header of 16,777,219 bytes"):
        identify(tmp_path / "x.safetensors")
