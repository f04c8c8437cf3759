"""AnimateDiff's original arithmetic on (b, c, f, h, w) tensors, from docs/formats.md 1, 2 and 4 alone.

Slow and plain on purpose: it takes the weights of a stock UNet and a canonical motion state, and shares with
the attachment neither hooks nor folding nor torch's norms and attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, pooled: bool) -> Tensor:
    """Statistics of each frame alone, or of all frames of a clip together."""
    b, c, f, h, w = x.shape
    parts = x.reshape(b, groups, c // groups, f, h, w)
    over = (2, 3, 4, 5) if pooled else (2, 4, 5)
    mean = parts.mean(over, keepdim=True)
    var = ((parts - mean) ** 2).mean(over, keepdim=True)
    y = ((parts - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    return y * weight.view(1, c, 1, 1, 1) + bias.view(1, c, 1, 1, 1)


def positions(frames: int, channels: int) -> Tensor:
    table = torch.zeros(frames, channels)
    for p in range(frames):
        for i in range(0, channels, 2):
            angle = p * math.exp(i * (-math.log(10000.0) / channels))
            table[p, i], table[p, i + 1] = math.sin(angle), math.cos(angle)
    return table


class Motion:
    """One motion module: `weights` are its tensors by original suffix."""

    def __init__(self, weights: dict[str, Tensor], heads: int, groups: int, pooled: bool) -> None:
        self.weights, self.heads, self.groups, self.pooled = weights, heads, groups, pooled

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        y = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return y * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, x: Tensor, name: str) -> Tensor:
        n, f, c = x.shape
        x = x + self.weights.get(f"{name}.pos_encoder.pe", positions(f, c)[None])[:, :f]
        q, k, v = (
            self.linear(x, f"{name}.to_{p}").view(n, f, self.heads, -1).permute(0, 2, 1, 3) for p in "qkv"
        )
        scores = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(c // self.heads), dim=-1)
        return self.linear((scores @ v).permute(0, 2, 1, 3).reshape(n, f, c), f"{name}.to_out.0")

    def __call__(self, clip: Tensor) -> Tensor:
        b, c, f, h, w = clip.shape
        outer, block = "temporal_transformer", "temporal_transformer.transformer_blocks.0"
        norm = self.weights[f"{outer}.norm.weight"], self.weights[f"{outer}.norm.bias"]
        x = group_norm(clip, *norm, self.groups, 1e-6, self.pooled)
        x = x.permute(0, 3, 4, 2, 1).reshape(b * h * w, f, c)
        x = self.linear(x, f"{outer}.proj_in")
        attentions = sum(name.endswith("to_q.weight") for name in self.weights)
        for i in range(attentions):
            x = x + self.attention(self.layer_norm(x, f"{block}.norms.{i}"), f"{block}.attention_blocks.{i}")
        value, gate = self.linear(self.layer_norm(x, f"{block}.ff_norm"), f"{block}.ff.net.0.proj").chunk(
            2, -1
        )
        x = x + self.linear(value * F.gelu(gate), f"{block}.ff.net.2")
        x = self.linear(x, f"{outer}.proj_out")
        return clip + x.reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2)


class ReferenceUNet:
    """The stock UNet's weights run on whole clips, with motion after each layer."""

    def __init__(self, unet, state: dict[str, Tensor], heads, groups, resnet_pooled, motion_pooled) -> None:
        self.unet, self.pooled, self.motion = unet, resnet_pooled, {}
        for prefix in {name.partition(".temporal_transformer")[0] for name in state}:
            weights = {
                name[len(prefix) + 1 :]: tensor for name, tensor in state.items() if name.startswith(prefix)
            }
            self.motion[prefix] = Motion(weights, heads, groups, motion_pooled)

    def frames(self, module, x: Tensor, *args, **kwargs) -> Tensor:
        """Run an image module on every frame by itself."""
        out = [module(x[:, :, f], *args, **kwargs) for f in range(x.shape[2])]
        return torch.stack([o[0] if isinstance(o, tuple) else o for o in out], dim=2)

    def norm(self, norm, x: Tensor) -> Tensor:
        return group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, self.pooled)

    def resnet(self, block, x: Tensor, emb: Tensor) -> Tensor:
        h = self.frames(block.conv1, F.silu(self.norm(block.norm1, x)))
        h = h + block.time_emb_proj(F.silu(emb))[:, :, None, None, None]
        h = self.frames(block.conv2, F.silu(self.norm(block.norm2, h)))
        return h + (self.frames(block.conv_shortcut, x) if block.conv_shortcut is not None else x)

    def layer(self, block, path: str, j: int, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        x = self.resnet(block.resnets[j], x, emb)
        if hasattr(block, "attentions"):
            x = self.frames(block.attentions[j], x, encoder_hidden_states=text, return_dict=False)
        return self.motion[f"{path}.motion_modules.{j}"](x)

    def embed(self, timestep: int, batch: int, added: dict[str, Tensor] | None) -> Tensor:
        unet = self.unet
        emb = unet.time_embedding(unet.time_proj(torch.full((batch,), timestep)))
        if added is None:
            return emb
        times = unet.add_time_proj(added["time_ids"].flatten()).reshape(batch, -1)
        return emb + unet.add_embedding(torch.cat([added["text_embeds"], times], dim=-1))

    def __call__(self, clip: Tensor, timestep: int, text: Tensor, added: dict | None = None) -> Tensor:
        """(b, c, f, h, w) and text (b, tokens, width) -> the prediction (b, c, f, h, w)."""
        unet, emb = self.unet, self.embed(timestep, clip.shape[0], added)
        x = self.frames(unet.conv_in, clip)
        skips = [x]
        for i, block in enumerate(unet.down_blocks):
            for j in range(len(block.resnets)):
                x = self.layer(block, f"down_blocks.{i}", j, x, emb, text)
                skips.append(x)
            if block.downsamplers is not None:
                x = self.frames(block.downsamplers[0], x)
                skips.append(x)
        x = self.resnet(unet.mid_block.resnets[0], x, emb)
        x = self.frames(unet.mid_block.attentions[0], x, encoder_hidden_states=text, return_dict=False)
        if "mid_block.motion_modules.0" in self.motion:
            x = self.motion["mid_block.motion_modules.0"](x)
        x = self.resnet(unet.mid_block.resnets[1], x, emb)
        for i, block in enumerate(unet.up_blocks):
            for j in range(len(block.resnets)):
                x = self.layer(block, f"up_blocks.{i}", j, torch.cat([x, skips.pop()], dim=1), emb, text)
            if block.upsamplers is not None:
                x = self.frames(block.upsamplers[0], x)
        return self.frames(unet.conv_out, F.silu(self.norm(unet.conv_norm_out, x)))
