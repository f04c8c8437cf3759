"""A model in low precision takes and gives float32 for one block, and is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_unet

from stillmotion.attachments.precision import float32_outside
from stillmotion.runtime import precision
from stillmotion.runtime.precision import NoEmulatedBf16, best_dtype, cpu_computes_bf16, training_dtype


@pytest.mark.parametrize(
    ("best", "precision", "dtype"),
    [
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),
        (torch.float32, "bf16", torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
    ],
)
def test_training_never_computes_in_fp16(monkeypatch, best, precision, dtype) -> None:
    monkeypatch.setattr("stillmotion.runtime.precision.best_dtype", lambda device: best)
    assert training_dtype(precision, torch.device("cpu")) is dtype


def call(unet, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 4, 8, 8), (2, 5, 32)))
    with torch.no_grad():
        return unet(x, torch.tensor(3), encoder_hidden_states=text)


def test_float32_goes_in_and_comes_out_of_a_bf16_unet() -> None:
    unet = tiny_unet().to(torch.bfloat16)
    native = call(unet, torch.bfloat16).sample
    with float32_outside(unet):
        wrapped = call(unet, torch.float32).sample
    assert wrapped.dtype == torch.float32
    assert torch.equal(wrapped, native.float())


def test_tuples_come_out_in_float32_too_and_nested_dicts_are_not_touched() -> None:
    unet = tiny_unet("sdxl").to(torch.bfloat16)
    conditions = {"text_embeds": torch.ones(2, 32), "time_ids": torch.ones(2, 6)}
    with float32_outside(unet), torch.no_grad():
        (out,) = unet(
            torch.ones(2, 4, 8, 8),
            1,
            encoder_hidden_states=torch.ones(2, 5, 64),
            added_cond_kwargs=conditions,
            return_dict=False,
        )
    assert out.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in conditions.values())


def test_hooks_come_off_after_an_exception() -> None:
    unet = tiny_unet().to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="boom"), float32_outside(unet):
        raise RuntimeError("boom")
    assert not unet._forward_hooks and not unet._forward_pre_hooks
    with pytest.raises(RuntimeError, match="(?i)dtype|type"):
        call(unet, torch.float32)


def test_a_float32_unet_computes_the_same_inside() -> None:
    unet = tiny_unet()
    outside = call(unet, torch.float32).sample
    with float32_outside(unet):
        assert torch.equal(call(unet, torch.float32).sample, outside)


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_processor_is_asked(has: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: has)
    assert best_dtype("cpu") == expected


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx512f", False), (None, False)]
)
def test_without_torch_the_kernel_is_asked(flags, expected, tmp_path, monkeypatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    assert cpu_computes_bf16() is expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_that_is_emulated_becomes_a_float32_copy(native, expected, monkeypatch) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: native)
    x = torch.ones(3)
    with NoEmulatedBf16():
        y = x.bfloat16().mul_(2)
    assert y.dtype == expected and torch.equal(x, torch.ones(3))
    assert x.bfloat16().dtype == torch.bfloat16


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought Muon")
def test_muon_steps_the_same_way_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    ends = []
    for emulated in (True, False):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(24, 16))
        optimizer = torch.optim.Muon([weight], lr=0.1, weight_decay=0.0)
        weight.grad = torch.randn(24, 16)
        before = weight.detach().clone()
        if emulated:
            optimizer.step()
        else:
            with NoEmulatedBf16():
                optimizer.step()
        ends.append(weight.detach() - before)
    assert torch.allclose(ends[0], ends[1], atol=0.02 * float(ends[0].abs().max()))
    assert not torch.equal(*ends)
