"""diffusers names -> LDM names, to make single-file checkpoints in tests (diffusers ships the other way)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
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
VAE = {
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
}
OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _replaced(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def unet_to_ldm(state: dict[str, Tensor], layers: int, blocks: int) -> dict[str, Tensor]:
    """UNet2DConditionModel -> `model.diffusion_model.`; `layers` per block, `blocks` of the down path."""
    ldm = {}
    for name, tensor in state.items():
        new = next(
            (ldm_ + name[len(old) :] for old, ldm_ in UNET.items() if name.startswith(old + ".")), None
        )
        found = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
        )
        if found:
            path, kind, rest = found[1], found[3], found[5]
            block, layer = int(found[2]), int(found[4])
            if path == "down":
                number = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
                place = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
                rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
                new = f"input_blocks.{number}.{place}.{rest}"
            else:
                number = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
                attended = any(f"up_blocks.{block}.attentions" in key for key in state)
                place = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attended else "1"}[kind]
                new = f"output_blocks.{number}.{place}.{rest}"
        if new is None:
            raise KeyError(name)
        if "resnets" in name:
            new = _replaced(new, RESNET)
        ldm[f"model.diffusion_model.{new}"] = tensor
    return ldm


def vae_to_ldm(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """AutoencoderKL -> `first_stage_model.`, with the attention as 1x1 convolutions."""
    ldm = {}
    for name, tensor in state.items():
        new = _replaced(name, VAE)
        if "mid.attn_1" in new and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)",
            lambda m: f"up.{blocks - 1 - int(m[1])}." + (f"block.{m[3]}" if m[3] else "upsample"),
            new,
        )
        ldm[f"first_stage_model.{new.replace('conv_shortcut', 'nin_shortcut')}"] = tensor
    return ldm


def clip_to_ldm(state: dict[str, Tensor], prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    """CLIPTextModel -> the same names behind a prefix (transformers 5.6 left out `text_model.`)."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()
    }


def open_clip_to_ldm(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """CLIPTextModel(WithProjection) -> OpenCLIP names, with q, k and v in one matrix."""
    ldm: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "text_projection.weight":
            ldm[f"{prefix}text_projection"] = tensor.T.contiguous()
            continue
        name = f"text_model.{name.removeprefix('text_model.')}"
        found = re.match(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name)
        if found:
            keys = [name.replace("q_proj", f"{x}_proj").removeprefix("text_model.") for x in "qkv"]
            pieces = [state.get(key, state.get(f"text_model.{key}")) for key in keys]
            layer = _replaced(found[1], OPEN_CLIP)
            ldm[f"{prefix}{layer}.attn.in_proj_{found[2]}"] = torch.cat(pieces)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            ldm[f"{prefix}{_replaced(name, OPEN_CLIP)}"] = tensor
    return ldm
