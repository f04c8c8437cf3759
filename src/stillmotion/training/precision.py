"""In which precision a run computes: bf16 where the processor has instructions for it, fp32 elsewhere."""

from __future__ import annotations

import torch


def working_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype for "fp32", "bf16" or "auto" on this device."""
    if precision == "auto":
        return torch.bfloat16 if fast_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed and not emulated there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
        return any(check() for check in has)
    return False
