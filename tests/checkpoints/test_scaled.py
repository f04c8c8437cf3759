"""Weights of 8 bits with scales mean both multiplied, however scales are spelled and shaped; nan is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_base_model import ldm_state
from tiny import tiny_pipeline
from torch import Tensor

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.scaled import dequantized
from stillmotion.errors import Damaged, WeightsError

QUERY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1"
BLOCKS = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
EIGHT = {"dtype": torch.float8_e4m3fn}
SPELLINGS = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".scale_inv", ".weight.scale", ".scale")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_a_weight_is_multiplied_by_its_scale(spelling: str, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 8)
    state = {
        "a.weight": (weight / 0.25).to(dtype),
        f"a{spelling}": torch.tensor(0.25),
        "a.scale_input": torch.tensor(7.0),
        "b.weight": weight.to(dtype),
        "norm.weight": weight,
        "norm.scale": torch.tensor(3.0),
        "scaled_fp8": torch.zeros(2).to(dtype),
    }
    found = dequantized(state, torch.float32, "x")
    assert torch.equal(found["a.weight"], (weight / 0.25).to(dtype).float() * 0.25)
    assert torch.equal(found["norm.weight"], weight) and found["b.weight"].dtype == dtype
    assert f"a{spelling}" not in found and dequantized(found, torch.float32, "x") == found


@pytest.mark.parametrize(
    ("shape", "scales", "expected"),
    [
        ((6, 8), torch.tensor([0.5]), 0.5),
        ((6, 8), torch.arange(6.0), torch.arange(6.0)[:, None]),
        ((6, 8), torch.arange(6.0)[:, None], torch.arange(6.0)[:, None]),
        ((6, 8), torch.arange(8.0)[None], torch.arange(8.0)[None]),
        ((6, 3, 2, 2), torch.arange(6.0), torch.arange(6.0)[:, None, None, None]),
        ((4, 6), BLOCKS, torch.kron(BLOCKS, torch.ones(2, 3))),
        ((200, 320), torch.rand(2, 3), None),
    ],
    ids=["number", "rows", "column", "inputs", "convolution", "blocks", "blocks that end short"],
)  # fmt: skip
def test_scales_of_every_shape(
    shape: tuple[int, ...], scales: Tensor, expected: Tensor | float | None
) -> None:
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    found = dequantized({"a.weight": weight, "a.weight_scale": scales}, torch.float32, "x")["a.weight"]
    if expected is None:  # blocks of 128, as published; the last ones are shorter
        expected = torch.stack([scales[i // 128, torch.arange(320) // 128] for i in range(200)])
    assert torch.equal(found, weight.float() * expected)


def test_two_scales_are_both_multiplied() -> None:
    one = torch.ones(2, 2).to(torch.float8_e4m3fn)
    scales = {"a.weight_scale": torch.tensor(2.0), "a.weight_scale_2": torch.tensor(3.0)}
    assert (dequantized({"a.weight": one, **scales}, torch.bfloat16, "x")["a.weight"] == 6).all()


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ({"a.weight": torch.zeros(4, 4).char(), "a.weight_scale": torch.ones(4)}, WeightsError, "to int8"),
        ({"a.weight": torch.zeros(4, 2).byte(), "a.weight_scale": torch.ones(1)}, WeightsError, "to uint8"),
        ({"a.weight": torch.zeros(8, 1).byte(), "a.weight.absmax": torch.ones(1)}, WeightsError, "bitsandb"),
        ({"a.weight": torch.zeros(4, 4, **EIGHT), "a.weight_scale": torch.ones(3)}, Damaged, r"is \(3,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_multiplied_is_refused(state: dict[str, Tensor], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        dequantized(state, torch.float32, "x")


@pytest.mark.parametrize("layer", [QUERY, TEXT], ids=["unet", "text encoder"])
def test_a_scaled_checkpoint(layer: str, sd15_folder: Path, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in ldm_state(tiny_pipeline("sd15")).items()}
    full = state[f"{layer}.weight"]
    state[f"{layer}.weight"] = (full / 0.125).to(torch.float8_e4m3fn)
    state[f"{layer}.scale_weight"] = torch.tensor(0.125)
    state["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "x.safetensors")
    loaded = load_base(tmp_path / "x.safetensors", config=sd15_folder)
    stored = [*loaded.unet.parameters(), *loaded.text_encoder.parameters()]
    near = [((p - full).norm() / full.norm()).item() for p in stored if p.shape == full.shape]
    assert 0 < min(near) < 0.05


def _spoiled(file: Path, value: float) -> str:
    state = load_file(file)
    name = sorted(state)[0]
    state[name].flatten()[0] = value
    save_file(state, file)
    return name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_named(
    part: str, value: float, sd15_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "base")
    name = _spoiled(next((folder / part).glob("*.safetensors")), value)
    with pytest.raises(Damaged, match=f"the {part} of .*base holds values that are not finite .* in {name}:"):
        load_base(folder)


def test_a_weight_too_large_for_half(sd15_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "base")
    _spoiled(folder / "unet" / "diffusion_pytorch_model.safetensors", 1e6)
    with pytest.raises(WeightsError, match="values of up to 1000000, too large for float16"):
        load_base(folder, torch.float16)
    assert load_base(folder, torch.bfloat16).unet.dtype == torch.bfloat16
