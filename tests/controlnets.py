"""Tiny ControlNets for the UNets of tiny.py: random weights, none of them zero, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from tiny import SIZE, Kind, tiny_unet

from stillmotion.checkpoints.controlnet import original_names


def tiny_controlnet(kind: Kind = "sd15", seed: int = 0, **config: Any) -> ControlNetModel:
    """One that fits `tiny_unet(kind)` and halves its hints once, as the tiny VAE does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(tiny_unet(kind, seed), conditioning_embedding_out_channels=(8, 16))
        if config:
            settings = {key: value for key, value in net.config.items() if not key.startswith("_")}
            net = ControlNetModel(**settings | config)
        last = net.controlnet_cond_embedding.conv_out
        for layer in [*net.controlnet_down_blocks, net.controlnet_mid_block, last]:
            torch.nn.init.normal_(layer.weight, std=0.2)
    return net.eval().requires_grad_(False)


def original_state(net: ControlNetModel, prefix: str = "control_model.") -> dict[str, torch.Tensor]:
    """Its weights as the original's files have them."""
    state = net.state_dict()
    return {prefix + name: state[ours] for ours, name in original_names(state).items()}


def save_controlnet(net: ControlNetModel, path: Path, prefix: str | None = None) -> Path:
    """A file in diffusers' names, or in the original's behind a prefix."""
    state = net.state_dict() if prefix is None else original_state(net, prefix)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def hints(frames: int, seed: int = 6, size: int = SIZE) -> torch.Tensor:
    """Random images (frames, 3, h, w) in 0..1."""
    return torch.rand(frames, 3, size, size, generator=torch.Generator().manual_seed(seed))
