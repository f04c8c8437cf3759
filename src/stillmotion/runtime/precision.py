"""Device and precision that this machine does well.

bf16 halves the time of a UNet on processors that compute it (AVX512-BF16, AMX) and is
slower than float32 on those that emulate it, so it is chosen by asking the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stillmotion.errors import RequestError

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def best_device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def as_device(name: str | int | torch.device) -> torch.device:
    """A device by its name ("cuda", "cuda:1", "mps", "cpu"); RequestError if this machine has none such."""
    try:
        device = torch.device(name)
        if device.type != "meta":
            torch.empty(1, device=device)
            return device
    except (AssertionError, NotImplementedError, RuntimeError, TypeError):
        pass
    there = [*(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    raise RequestError(
        f"device is {str(name)!r}, which torch does not have here; it has {', '.join([*there, 'cpu'])}. "
        "Leave it out to take the best."
    )


def best_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 where it is computed and not emulated, fp16 on other GPUs, float32 on other processors."""
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    if kind == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_computes_bf16() else torch.float32


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype for "fp32", "bf16" or "auto"; never fp16, whose gradients vanish without a loss scale."""
    if precision == "auto":
        return torch.bfloat16 if best_dtype(device) == torch.bfloat16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def cpu_computes_bf16() -> bool:
    """Whether this processor has AVX512-BF16 or AMX; older torch cannot say, then the kernel is asked."""
    checks = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    if any(checks):
        return any(check() for check in checks if check)
    flags = set(CPUINFO.read_text().split()) if CPUINFO.is_file() else set()
    return bool(BF16_FLAGS & flags)


class NoEmulatedBf16(TorchFunctionMode):
    """Within it `.bfloat16()` gives a float32 copy on a processor that only emulates bf16.

    For library code that insists on it: torch's Muon took 100 s a step with AVX2 alone, so 1 s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.emulated = not cpu_computes_bf16()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.emulated and func is Tensor.bfloat16 and args[0].device.type == "cpu":
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))
