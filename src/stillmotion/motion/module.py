"""The temporal transformer of AnimateDiff, and a whole set of them for one UNet.

Parameters are named as in the original checkpoints (docs/formats.md 1): a state_dict is the canonical layout.

    clip     (b f) c h w -> GroupNorm -> tokens (b f) n c -> proj_in -> block -> proj_out -> (b f) c h w
    block    x += attention(LN(x) + place) twice, x += GEGLU(LN(x))

Tokens stay in the order of the images, n = h*w inside each frame: a linear layer does not care, and the
attention takes (n heads) as its heads and the frames as its sequence. So no tensor is ever copied into the
paper's (b h w) f c order, which costs more than a linear layer on a CPU in bf16 (320 channels, 32x32 pixels:
30 ms in and 80 ms out, against 15 ms).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stillmotion.errors import AttachError, Mismatch
from stillmotion.motion.config import MotionConfig, Norm
from stillmotion.motion.families import (
    SDXL,
    UNKNOWN,
    V3,
    MotionFamily,
    family_of_config,
    installed_families,
)
from stillmotion.motion.positions import Positions
from stillmotion.motion.slots import has_mid, unwrap_unet, widths

if TYPE_CHECKING:
    from typing_extensions import Self

CUDA_LIMIT = 65535
"""most rows that one launch of the fused CUDA attention kernels takes (a grid dimension)"""


def attend(q: Tensor, k: Tensor, v: Tensor, limit: int | None = None) -> Tensor:
    """Attention over the frames, (b rows f d), at most `limit` rows at once (1024x1024 pixels: 131072)."""
    if q.requires_grad and q.device.type == "cpu" and q.dtype != torch.float32:
        return _attend_written_out(q, k, v)
    if limit is None and q.is_cuda:
        limit = CUDA_LIMIT
    if limit is None or q.shape[1] <= limit:
        return F.scaled_dot_product_attention(q, k, v)
    pieces = zip(q.split(limit, 1), k.split(limit, 1), v.split(limit, 1), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*piece) for piece in pieces], dim=1)


def _attend_written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """For training in bf16 on a CPU, where the fused kernel's backward pass is slow on short sequences.

    Forward and backward, 16 frames, clips x rows x head: 8 x 2048 x 16 takes 87 ms against 200, 8 x 512 x 32
    takes 22 against 229, 2 x 8192 x 40 takes 114 against 1034. Without gradients the fused one is no slower.
    """
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    weights = torch.softmax(torch.bmm(q * shape[-1] ** -0.5, k.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, v).view(shape)


class TemporalAttention(nn.Module):
    """Self-attention of each point of the image over the frames of its clip."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pos_encoder = Positions()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        x = self.pos_encoder(x, frames)  # (b f) n c
        q, k, v = (self._rows(project(x), frames) for project in (self.to_q, self.to_k, self.to_v))
        x = attend(q, k, v).transpose(1, 2).reshape(x.shape)  # b (n heads) f d -> (b f) n c
        return self.to_out[0](x)

    def _rows(self, x: Tensor, frames: int) -> Tensor:
        """(b f) n c -> b (n heads) f d, a view."""
        clips, rows = x.shape[0] // frames, x.shape[1] * self.heads
        return x.reshape(clips, frames, rows, x.shape[2] // self.heads).transpose(1, 2)


class GEGLU(nn.Module):
    """Gated linear unit with an exact GELU gate."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """c -> 4c gated -> c; entry 1 was dropout in the original and keeps its number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TemporalBlock(nn.Module):
    """Temporal attentions (SparseCtrl has one), then a feed-forward; each with LayerNorm and residual."""

    def __init__(self, channels: int, heads: int, attentions: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(channels, heads) for _ in range(attentions))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(attentions))
        self.ff = FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x), frames)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """From a clip to what motion adds to it."""

    def __init__(self, channels: int, heads: int, attentions: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(channels, heads, attentions)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, hidden: Tensor, frames: int, norm: Norm) -> Tensor:
        x = self.proj_in(self._tokens(hidden, frames, norm))
        for block in self.transformer_blocks:
            x = block(x, frames)
        return self.proj_out(x).transpose(1, 2).unflatten(2, hidden.shape[2:])  # (b f) n c -> (b f) c h w

    def _tokens(self, hidden: Tensor, frames: int, norm: Norm) -> Tensor:
        """(b f) c h w -> (b f) n c, normalised over each frame or over all frames of a clip."""
        if norm == "per-frame":
            return self.norm(hidden).flatten(2).transpose(1, 2).contiguous()
        clip = self.norm(hidden.unflatten(0, (-1, frames)).transpose(1, 2))  # b c f h w
        return clip.flatten(3).permute(0, 2, 3, 1).reshape(hidden.shape[0], -1, hidden.shape[1])


class MotionModule(nn.Module):
    """One temporal transformer on one slot of the UNet. Fresh ones add nothing: `proj_out` is zero."""

    def __init__(
        self, channels: int, heads: int = 8, attentions: int = 2, groups: int = 32, norm: Norm = "per-frame"
    ) -> None:
        super().__init__()
        if channels % heads or channels % groups:
            raise AttachError(
                f"A motion module of {channels} channels cannot have {heads} heads and {groups} norm groups: "
                "both must divide the channels."
            )
        self.temporal_transformer = TemporalTransformer(channels, heads, attentions, groups)
        self.motion_norm: Norm = norm
        self.gradient_checkpointing = False

    def residual(self, hidden: Tensor, frames: int, norm: Norm | None = None) -> Tensor:
        """What motion adds to (b*frames, c, h, w); `norm` overrides the module's own."""
        norm = norm or self.motion_norm
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.temporal_transformer, hidden, frames, norm, use_reentrant=False)
        return self.temporal_transformer(hidden, frames, norm)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """(b*frames, c, h, w) -> the same shape; the batch must divide by the frames."""
        return hidden + self.residual(hidden, frames)


class MotionModules(nn.Module):
    """All motion modules of one model; the state_dict is the canonical layout, positions only if altered.

    `family` says what they were trained for; a shape alone has the settings of the family of its name.
    """

    def __init__(self, family: MotionFamily | MotionConfig) -> None:
        super().__init__()
        self.family = family if isinstance(family, MotionFamily) else family_of_config(family)
        spec = self.spec
        self._place("down_blocks", spec.down_widths)
        if spec.mid:
            self.mid_block = nn.ModuleDict({"motion_modules": nn.ModuleList()})
        self._place("up_blocks", spec.up_widths)
        for prefix, (channels, heads) in spec.modules().items():
            module = MotionModule(channels, heads, spec.attentions, spec.norm_groups, spec.motion_norm)
            places: Any = self.get_submodule(prefix.rpartition(".")[0])  # a ModuleList, by _place
            places.append(module)

    @property
    def spec(self) -> MotionConfig:
        """The shape of the modules."""
        return self.family.config

    def _place(self, path: str, blocks: tuple[tuple[int, ...], ...]) -> None:
        empty = [nn.ModuleDict({"motion_modules": nn.ModuleList()}) for _ in blocks]
        self.add_module(path, nn.ModuleList(empty))

    @classmethod
    def from_spec(cls, spec: MotionFamily | MotionConfig) -> Self:
        """A fresh set, as at the start of training: attached, it changes nothing."""
        return cls(spec)

    @classmethod
    def for_unet(cls, unet: nn.Module, **overrides: Any) -> Self:
        """A fresh set that fits this UNet2DConditionModel; `overrides` are columns of a family."""
        return cls(family_for(unet, **overrides))

    @classmethod
    def from_state(cls, spec: MotionFamily | MotionConfig, state: Mapping[str, Tensor]) -> Self:
        """The set with these tensors (shared, not copied) by canonical name; Mismatch if any is off."""
        _check(spec if isinstance(spec, MotionConfig) else spec.config, state)
        with torch.device("meta"):
            net = cls(spec)
        net.load_state_dict(dict(state), assign=True)
        return net.eval()

    def modules_by_name(self) -> dict[str, MotionModule]:
        """Canonical prefix -> module, in the order of the UNet."""
        return {prefix: cast("MotionModule", self.get_submodule(prefix)) for prefix in self.spec.modules()}

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each module in the backward pass instead of keeping what happened inside it.

        The UNet's own switch cannot do this: its blocks checkpoint their resnets only.
        """
        for module in self.modules_by_name().values():
            module.gradient_checkpointing = enabled


def family_for(unet: nn.Module, **overrides: Any) -> MotionFamily:
    """The modules that fit the UNet slot by slot; settings as in the family of this shape, if there is one.

    `heads` may be one number; its largest divisor that divides the channels counts. Default 8.
    """
    unet = unwrap_unet(unet)
    config: Any = unet.config
    down, up = widths(unet, "down_blocks"), widths(unet, "up_blocks")
    channels, layers = tuple(block[0] for block in down), tuple(map(len, down))
    known = (V3, SDXL, *installed_families().values())
    rows = (row for row in known if (row.config.channels, row.config.layers) == (channels, layers))
    row = next(rows, UNKNOWN)
    most = overrides.pop("heads", 8)
    levels = [gcd(*block, *(up[-1 - i] if up else ())) for i, block in enumerate(down)]
    fields = {
        "name": "custom",
        "channels": channels,
        "layers": layers,
        "heads": tuple(gcd(level, most) for level in levels) if isinstance(most, int) else tuple(most),
        "mid": has_mid(unet),
        "norm_groups": gcd(config.norm_num_groups or 32, *levels),
    }
    found = row.updated(**fields | overrides)
    return found if found.config.up_widths == up else found.updated(up=up)


def _check(spec: MotionConfig, state: Mapping[str, Tensor]) -> None:
    expected = spec.shapes()
    stored = {
        name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("pos_encoder.pe")
    }
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise Mismatch(
                f"These are not the weights of {spec.name} motion ({spec.shape}): {name} is "
                f"{stored.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}."
            )
