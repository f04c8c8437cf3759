"""Names of a text-to-image model in one file (the LDM layout): tables and pure functions.

    down_blocks.0.resnets.1.norm1.weight     model.diffusion_model.input_blocks.2.0.in_layers.0.weight
    the same, averaged in training (EMA)     model_ema.diffusion_modelinput_blocks20in_layers0weight
    decoder.up_blocks.0.resnets.0.conv1...   first_stage_model.decoder.up.3.block.0.conv1...
    encoder.layers.0.mlp.fc1.weight          cond_stage_model.transformer.text_model.encoder.layers.0...
    the same in OpenCLIP                     cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight

LDM numbers the layers of a UNet through all blocks, so the numbers follow from which layers there are: any
number of blocks and of layers in each has its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from stillmotion.errors import UnknownFile

if TYPE_CHECKING:
    from torch import Tensor

UNET = "model.diffusion_model."
EMA = "model_ema."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
TEXT_OPEN = "cond_stage_model.model."
TEXT_XL = "conditioner.embedders.0.transformer."
TEXT_XL_2 = "conditioner.embedders.1.model."
"""Where each part is in a checkpoint; the prefixes that end in `model.` have the names of OpenCLIP."""

UNET_PARTS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_shortcut": "nin_shortcut",
}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}

_LAYER = re.compile(
    r"(?P<path>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)"
    r"\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_QKV = re.compile(r"(?P<layer>encoder\.layers\.\d+\.)self_attn\.[qkv]_proj\.(?P<end>weight|bias)")


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """The LDM name of each tensor of a UNet2DConditionModel; UnknownFile for one that has none."""
    names = list(names)
    numbers = _numbers(names)
    return {name: UNET + _unet_name(name, numbers) for name in names}


def ema_name(ldm: str) -> str:
    """Where the average of a tensor of the UNet is: model_ema, without the dots."""
    return EMA + ldm.removeprefix("model.").replace(".", "")


def vae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An AutoencoderKL in the LDM layout, its attention as convolutions of 1x1."""
    blocks = 1 + max(
        (int(n) for name in state for n in re.findall(r"^decoder\.up_blocks\.(\d+)", name)), default=0
    )
    renamed = {VAE + _vae_name(name, blocks): tensor for name, tensor in state.items()}
    return {
        name: tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
        for name, tensor in renamed.items()
    }


def clip_state(state: Mapping[str, Tensor], prefix: str = TEXT) -> dict[str, Tensor]:
    """A CLIPTextModel behind a prefix, by the names it has always had in files."""
    return {f"{prefix}text_model.{name}": tensor for name, tensor in _without_text_model(state).items()}


def open_clip_state(state: Mapping[str, Tensor], prefix: str = TEXT_OPEN) -> dict[str, Tensor]:
    """A CLIPTextModel, with projection or not, in OpenCLIP's names: q, k and v are one matrix there."""
    import torch

    state, written = _without_text_model(state), {}
    for name, tensor in state.items():
        if name == "text_projection.weight":
            written["text_projection"] = tensor.T
        elif found := _QKV.fullmatch(name):
            pieces = [state[f"{found['layer']}self_attn.{x}_proj.{found['end']}"] for x in "qkv"]
            written[f"{_replaced(found['layer'], OPEN_CLIP)}attn.in_proj_{found['end']}"] = torch.cat(pieces)
        else:
            written[_replaced(name, OPEN_CLIP)] = tensor
    return {prefix + name: tensor for name, tensor in written.items()}


def _numbers(names: Iterable[str]) -> dict[tuple[str, int, str, int], tuple[int, int]]:
    """(path, block, kind, layer) -> number of the block and place in it, both as LDM counts them."""
    layers = sorted(
        {(f["path"], int(f["block"]), f["kind"], int(f["layer"])) for f in map(_LAYER.match, names) if f}
    )
    numbers, last = {}, {"down": 0, "up": -1}
    for path, block in dict.fromkeys((path, block) for path, block, _, _ in layers):
        here = {(kind, layer) for p, b, kind, layer in layers if (p, b) == (path, block)}
        for layer in range(sum(kind == "resnets" for kind, _ in here)):
            last[path] += 1
            numbers[path, block, "resnets", layer] = last[path], 0
            numbers[path, block, "attentions", layer] = last[path], 1
        if ("downsamplers", 0) in here:
            last[path] += 1
            numbers[path, block, "downsamplers", 0] = last[path], 0
        attended = any(kind == "attentions" for kind, _ in here)
        numbers[path, block, "upsamplers", 0] = last[path], 2 if attended else 1
    return numbers


def _unet_name(name: str, numbers: Mapping[tuple[str, int, str, int], tuple[int, int]]) -> str:
    if not (found := _LAYER.match(name)):
        part = next((part for part in UNET_PARTS if name.startswith(f"{part}.")), None)
        if part is None:
            raise UnknownFile(
                f"The UNet has {name}, which single files of Stable Diffusion have no name for."
            )
        rest = name.removeprefix(part)
        return UNET_PARTS[part] + (_replaced(rest, RESNET) if ".resnets." in name else rest)
    number, place = numbers[found["path"], int(found["block"]), found["kind"], int(found["layer"])]
    rest = found["rest"]
    if found["kind"] == "resnets":
        rest = _replaced(rest, RESNET)
    elif found["kind"] == "downsamplers":
        rest = rest.replace("conv.", "op.")
    blocks = {"down": "input_blocks", "up": "output_blocks"}[found["path"]]
    return f"{blocks}.{number}.{place}.{rest}"


def _vae_name(name: str, blocks: int) -> str:
    """LDM counts the up path of the decoder from the pixels."""
    name = _replaced(name, VAE_PARTS)
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    return re.sub(
        r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
        lambda found: f"up.{blocks - 1 - int(found[1])}.{'block' if found[2] == 'resnets' else 'upsample'}",
        name,
    )


def _without_text_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the `text_model.` that transformers 5.6 took out of CLIPTextModel, and without its counter."""
    return {
        name.removeprefix("text_model."): tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name
