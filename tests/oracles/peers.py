"""Our motion in diffusers' own classes, and the UNet shapes that the oracles compare on."""

from __future__ import annotations

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from stillmotion.motion.module import MotionModules

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def unet_of(*attention: bool, seed: int = 0, **config) -> UNet2DConditionModel:
    """A stock UNet; `attention` says which down blocks have some."""
    down = tuple((CROSS if a else PLAIN).format("Down") for a in attention)
    up = tuple((CROSS if a else PLAIN).format("Up") for a in reversed(attention))
    defaults = {"norm_num_groups": 8, "cross_attention_dim": 16, "attention_head_dim": 4, "sample_size": 8}
    torch.manual_seed(seed)
    return UNet2DConditionModel(down_block_types=down, up_block_types=up, **defaults | config).eval()


def sd15_shaped() -> UNet2DConditionModel:
    return unet_of(True, True, True, False, block_out_channels=(16, 16, 32, 32), layers_per_block=2)


def sdxl_shaped() -> UNet2DConditionModel:
    return unet_of(
        False,
        True,
        True,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )


def asymmetric() -> UNet2DConditionModel:
    """Layers, attention heads and places of attention differ from block to block."""
    return unet_of(
        True,
        False,
        True,
        block_out_channels=(16, 32, 48),
        layers_per_block=(1, 3, 2),
        attention_head_dim=(2, 4, 8),
    )


def lively(net: MotionModules, seed: int = 1) -> MotionModules:
    """Every weight random, proj_out included: fresh motion adds nothing and would hide every error."""
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
        mean = float("norm" in name and name.endswith("weight"))
        torch.nn.init.normal_(parameter, mean=mean, std=scale)
    return net.eval().requires_grad_(False)


def adapter_of(net: MotionModules) -> MotionAdapter:
    """diffusers' adapter with our weights, renamed here by hand (docs/formats.md 7) and not by weights/."""
    spec = net.spec
    adapter = MotionAdapter(
        block_out_channels=spec.channels,
        motion_layers_per_block=spec.layers,
        motion_num_attention_heads=spec.heads,
        motion_norm_num_groups=spec.norm_groups,
        motion_max_seq_length=spec.positions,
        use_motion_mid_block=spec.mid,
    )
    renames = {
        ".temporal_transformer": "",
        ".attention_blocks.0": ".attn1",
        ".attention_blocks.1": ".attn2",
        ".norms.0": ".norm1",
        ".norms.1": ".norm2",
        ".ff_norm": ".norm3",
    }
    state = {}
    for name, tensor in net.state_dict().items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    missing, unexpected = adapter.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("pos_embed.pe") for name in missing)
    return adapter


def motion_unet(unet: UNet2DConditionModel, net: MotionModules) -> UNetMotionModel:
    """diffusers' UNet with the same weights; its from_unet2d (0.42.1) forgets SDXL's size conditioning."""
    model = UNetMotionModel.from_unet2d(unet, adapter_of(net)).eval()
    if unet.config.addition_embed_type is not None:
        model.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    return model


def fold(clip: Tensor) -> Tensor:
    """(b, c, f, h, w) -> (b*f, c, h, w)."""
    return clip.transpose(1, 2).flatten(0, 1)


def unfold(images: Tensor, frames: int) -> Tensor:
    """(b*f, c, h, w) -> (b, c, f, h, w)."""
    return images.unflatten(0, (-1, frames)).transpose(1, 2)


def inputs(unet: UNet2DConditionModel, clips: int = 2, frames: int = 5, size: int = 8, seed: int = 3):
    """A noisy clip, text per clip, and what SDXL wants besides."""
    torch.manual_seed(seed)
    clip = torch.randn(clips, unet.config.in_channels, frames, size, size)
    text = torch.randn(clips, 7, unet.config.cross_attention_dim)
    if unet.config.addition_embed_type is None:
        return clip, text, None
    return clip, text, {"text_embeds": torch.randn(clips, 16), "time_ids": torch.rand(clips, 6) * 8}
