"""Targets of motion LoRAs without a trainer around them, and what a loss says about their weights."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from stillmotion.training.config import MotionLoraConfig
from stillmotion.training.targets.motion_lora import MotionLoraTarget


def make_target(config: MotionLoraConfig) -> MotionLoraTarget:
    return MotionLoraTarget(config, Accelerator(cpu=True), lambda sentence: None)


def shaken(target: MotionLoraTarget) -> MotionLoraTarget:
    """Fresh LoRAs do nothing: give `up` numbers so that every path counts."""
    generator = torch.Generator().manual_seed(0)
    for parameter in target.parameters().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return target


def gradients(target: MotionLoraTarget, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*target.parameters().items(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}
