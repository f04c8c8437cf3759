"""LoRAs for the image model: the v3 domain adapter is applied as the plain sum of weights that it means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_lora, tiny_unet

from stillmotion.errors import Mismatch, WrongKind
from stillmotion.weights.lora import read_lora


def test_the_domain_adapter_adds_up_times_down(sd15_folder: Path, tmp_path: Path) -> None:
    from stillmotion.weights.base import load_base

    pipeline = load_base(sd15_folder)
    state = tiny_lora(scheme="processor", rank=4, spread=0.1)
    torch.save({"state_dict": state, "animatediff_config": "x"}, tmp_path / "v3_sd15_adapter.ckpt")
    expected = tiny_unet()
    expected.load_state_dict(pipeline.unet.state_dict())
    for key, down in state.items():
        if key.endswith(".down.weight"):
            place, _, part = key.removesuffix("_lora.down.weight").rpartition(".processor.")
            layer = expected.get_submodule(f"{place}.{'to_out.0' if part == 'to_out' else part}")
            layer.weight.data += state[key.replace(".down.weight", ".up.weight")] @ down
    pipeline.load_lora_weights(read_lora(tmp_path / "v3_sd15_adapter.ckpt", "sd15"))
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 32)
    with torch.no_grad():
        assert torch.allclose(pipeline.unet(x, 5, text).sample, expected(x, 5, text).sample, atol=1e-5)
        assert not torch.allclose(expected(x, 5, text).sample, tiny_unet()(x, 5, text).sample, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "shape", "base", "error", "words"),
    [
        ("lora_unet_attn2_to_k.hada_w1_a", (8, 8), None, WrongKind, "is a LoHa .*; stillmotion loads LoRA"),
        (
            "lora_unet_attn2_to_k.lora_down.weight",
            (8, 2048),
            "sd15",
            Mismatch,
            "Stable Diffusion XL, but the base",
        ),
        (
            "down_blocks.0.motion_modules.0.x.processor.to_q_lora.down.weight",
            (64, 8),
            None,
            WrongKind,
            "motion LoRA",
        ),
        ("bert.conv_in.weight", (1,), None, Exception, "not a file we know"),
    ],
)
def test_loras_that_cannot_be_applied(key, shape, base, error, words, tmp_path: Path) -> None:
    save_file({key: torch.zeros(shape)}, tmp_path / "l.safetensors")
    with pytest.raises(error, match=words):
        read_lora(tmp_path / "l.safetensors", base)


def test_names_that_diffusers_knows_stay(tmp_path: Path) -> None:
    state = {"lora_unet_attn2_to_k.lora_down.weight": torch.zeros(8, 768)}
    save_file(state, tmp_path / "l.safetensors")
    assert read_lora(tmp_path / "l.safetensors", "sd15").keys() == state.keys()
