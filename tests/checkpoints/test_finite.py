from __future__ import annotations

import pytest
import torch

from stillmotion.checkpoints.finite import check_finite
from stillmotion.errors import Damaged


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_nan_is_named(dtype: torch.dtype) -> None:
    good = torch.ones(3, 3).to(dtype)
    check_finite({"a": good, "empty": good[:0], "whole": torch.ones(2, dtype=torch.long)}, "x.ckpt")
    bad = torch.ones(3, 3)
    bad[1, 1] = torch.nan
    with pytest.raises(Damaged, match=r"x.ckpt .* b.weight and 1 more"):
        check_finite({"a": good, "b.weight": bad.to(dtype), "c": bad.to(dtype)}, "x.ckpt")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_inf_is_named(value: float) -> None:
    with pytest.raises(Damaged, match="in a:"):
        check_finite({"a": torch.tensor([0.0, value])}, "x.ckpt")
