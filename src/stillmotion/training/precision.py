"""In which precision a run computes: bf16 where the processor has instructions for it, fp32 elsewhere."""

from __future__ import annotations

import torch

from stillmotion.fast.precision import best_dtype


def working_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype for "fp32", "bf16" or "auto"; never fp16, whose gradients vanish without a loss scale."""
    if precision == "auto":
        return torch.bfloat16 if best_dtype(device) == torch.bfloat16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
