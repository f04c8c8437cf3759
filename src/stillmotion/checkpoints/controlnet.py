"""ControlNets from wherever they are: a diffusers folder, or one file in diffusers' or the original's names.

    control_model.input_blocks.1.0.in_layers.2.weight     the original: names of LDM, with or without prefix
    down_blocks.0.resnets.0.conv1.weight                  diffusers: in a folder, or in one file

A single file has no config: it is built after the UNet it must fit, with what its names and shapes tell.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stillmotion.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from stillmotion.checkpoints.compatibility import base_of_unet, require_kind
from stillmotion.checkpoints.file_kinds import BASES, TEXT_WIDTHS
from stillmotion.checkpoints.files import Shape
from stillmotion.checkpoints.ldm.keys import UNET, unet_names
from stillmotion.checkpoints.modules import fill, module_from, without_notes
from stillmotion.checkpoints.scaled import dequantized
from stillmotion.errors import Damaged, Mismatch, WrongKind

if TYPE_CHECKING:
    import torch
    from torch import nn

KIND = "ControlNetModel"
ORIGINAL = "control_model."
"""Where a ControlNet is in the original's files, some of which hold a whole checkpoint beside it."""

UNAPPLIED = {
    "lora_controlnet": "a Control-LoRA, which changes the UNet's own weights",
    "task_embedding": "a ControlNet Union, which takes several kinds of hints at once",
    "control_add_embedding.linear_1.weight": "a ControlNet Union, which takes several kinds of hints at once",
    "difference": "the difference of a ControlNet from its base",
}
"""Tensors of what is built like a ControlNet and is none that can be loaded alone."""


def load_controlnet(source: Source, unet: Any, dtype: torch.dtype) -> nn.Module:
    """The ControlNet at a place (a diffusers ControlNetModel), for a UNet that it fits.

    Args:
        source: a folder, a file (.safetensors, .ckpt, .pth), a name on the hub, or an open checkpoint.
        unet: the UNet2DConditionModel that it will steer; only its config is looked at.
        dtype: that of the loaded weights.

    Raises `Mismatch` for a ControlNet of another base, `WrongKind` for what is none, `Damaged` for missing
    tensors, other shapes, and values that are not finite.
    """
    found = open_checkpoint(source)
    if found.is_pipeline:
        require_kind(found.info, "controlnet")
    shapes = _of_controlnet(found.header)
    _check_kind(found, shapes)
    original = any(name.startswith("input_blocks.") for name in shapes)
    _check_fit(found.name, shapes, unet.config)
    settings = found.header.config if not original else {}
    settings = settings or _settings(unet.config, shapes, found.name, original)
    with without_notes():
        module = module_from(KIND, settings, found.name)
    state = dequantized(_of_controlnet(found.state()), dtype, found.name)
    if original:
        names = original_names(module.state_dict())
        state = {ours: state[theirs] for ours, theirs in names.items() if theirs in state}
    return fill(module, state, dtype, "ControlNet", found.name).requires_grad_(False)


def original_names(names: Iterable[str]) -> dict[str, str]:
    """The name of each tensor of a ControlNetModel in the original's files, without prefix."""
    own: dict[str, str] = {}
    rest = []
    blocks = 0
    for name in names:
        if name.startswith("controlnet_cond_embedding.blocks."):
            blocks = max(blocks, int(name.split(".")[2]) + 1)
    for name in names:
        part, _, end = name.rpartition(".")
        if part == "controlnet_mid_block":
            own[name] = f"middle_block_out.0.{end}"
        elif found := re.fullmatch(r"controlnet_down_blocks\.(\d+)", part):
            own[name] = f"zero_convs.{found[1]}.0.{end}"
        elif found := re.fullmatch(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))", part):
            number = {"conv_in": 0, "conv_out": blocks + 1}.get(found[1], int(found[2] or 0) + 1)
            own[name] = f"input_hint_block.{2 * number}.{end}"  # a SiLU between two layers
        else:
            rest.append(name)
    return own | {name: ldm.removeprefix(UNET) for name, ldm in unet_names(rest).items()}


def _of_controlnet(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the ControlNet alone, by names without prefix."""
    inside = {name: value for name, value in tensors.items() if name.startswith(ORIGINAL)}
    return {name.removeprefix(ORIGINAL): value for name, value in (inside or tensors).items()}


def _check_kind(found: Checkpoint, shapes: Mapping[str, Shape]) -> None:
    stored = found.header.config.get("_class_name", KIND)
    what = next((words for name, words in UNAPPLIED.items() if name in shapes), None)
    if what is None and stored != KIND and found.info.kind == "controlnet":
        what = f"a {stored}"
    if what is not None:
        raise WrongKind(f"{found.name} is {what}; stillmotion applies plain ControlNets ({KIND}).")
    if not any(name.startswith(("zero_convs.", "controlnet_down_blocks.")) for name in shapes):
        require_kind(found.info, "controlnet")
        raise Damaged(f"{found.name} is not complete: it has no layers that lead to the UNet.")


def _check_fit(name: str, shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> None:
    """Mismatch unless it gives what the UNet takes: one tensor for each skip connection, of its width."""
    pattern = re.compile(r"(?:zero_convs\.(\d+)\.0|controlnet_down_blocks\.(\d+))\.weight")
    numbered = {int(f[1] or f[2]): shapes[f[0]][0] for f in map(pattern.fullmatch, shapes) if f}
    given = tuple(numbered[number] for number in sorted(numbered))
    text = next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)
    width = config["cross_attention_dim"]
    if given == skip_widths(config) and text in (None, width):
        return
    family = BASES[TEXT_WIDTHS.get(text or 0, "custom")]
    raise Mismatch(
        f"{name} is a ControlNet for {family} (text {text}, widths {_short(given)}), but the base is "
        f"{BASES[base_of_unet(config)]} (text {width}, widths {_short(skip_widths(config))}): use a "
        "ControlNet made for this base."
    )


def skip_widths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of the skip connections of a UNet, in order: what a ControlNet adds to."""
    channels = tuple(config["block_out_channels"])
    layers = config.get("layers_per_block", 2)
    each = (layers,) * len(channels) if isinstance(layers, int) else tuple(layers)
    widths = [channels[0]]
    for number, (width, count) in enumerate(zip(channels, each, strict=True)):
        widths += [width] * (count + (number < len(channels) - 1))  # its downsampler
    return tuple(widths)


def _settings(
    unet: Mapping[str, Any], shapes: Mapping[str, Shape], name: str, original: bool
) -> dict[str, Any]:
    """The config of a ControlNet in a single file: that of the UNet, with what its shapes tell."""
    from diffusers import ControlNetModel

    known = inspect.signature(ControlNetModel.__init__).parameters
    settings = {key: value for key, value in unet.items() if key in known}
    if settings.get("encoder_hid_dim_type") == "ip_image_proj":  # an IP-Adapter on the UNet
        settings |= {"encoder_hid_dim_type": None, "encoder_hid_dim": None}
    if not original:
        settings |= _blocks(unet, shapes)
    hint = _hint_layers(shapes)
    if not hint:
        raise Damaged(f"{name} is not complete: it has no layers that read the hints.")
    return settings | {
        "conditioning_channels": hint[0][1],
        "conditioning_embedding_out_channels": (hint[0][0], *(shape[0] for shape in hint[2:-1:2])),
        "global_pool_conditions": "shuffle" in name.lower(),  # as the original's configs; no file tells it
    }


def _hint_layers(shapes: Mapping[str, Shape]) -> list[Shape]:
    """The convolutions that read hints, in order; two for each level, the last one's output is the UNet's."""
    pattern = re.compile(r"(?:input_hint_block|controlnet_cond_embedding)\.(?:blocks\.)?(\w+)\.weight")
    order = {"conv_in": -1, "conv_out": 10**6}
    found = {
        order[f[1]] if f[1] in order else int(f[1]): shapes[f[0]]
        for f in map(pattern.fullmatch, shapes)
        if f and (f[1] in order or f[1].isdecimal())
    }
    return [found[number] for number in sorted(found)]


def _blocks(unet: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Which blocks have attention and how much of it, from diffusers' names: small ones have less."""
    kinds, depths = [], []
    own = unet.get("transformer_layers_per_block", 1)
    for number, kind in enumerate(unet["down_block_types"]):
        start = f"down_blocks.{number}.attentions.0.transformer_blocks."
        depth = 1 + max((int(key.split(".")[5]) for key in shapes if key.startswith(start)), default=-1)
        kinds.append(("CrossAttnDownBlock2D" if depth else "DownBlock2D") if kind.endswith("2D") else kind)
        depths.append(depth or (own if isinstance(own, int) else own[number]))
    attended = any(key.startswith("mid_block.attentions.") for key in shapes)
    return {
        "down_block_types": tuple(kinds),
        "transformer_layers_per_block": tuple(depths),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attended else "UNetMidBlock2D",
    }


def _short(widths: tuple[int, ...]) -> str:
    return " ".join(map(str, dict.fromkeys(widths))) or "none"
