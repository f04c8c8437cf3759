"""The temporal transformer and sets of them: shapes, names, positions, fresh and given weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.peers import asymmetric, lively, unet_of
from oracles.reference import Motion
from oracles.reference import positions as reference_positions
from tiny import TINY_MOTION, tiny_motion, tiny_unet

from stillmotion.attachments.motion import attach_motion
from stillmotion.errors import AttachError, Mismatch
from stillmotion.motion.families import FAMILIES
from stillmotion.motion.module import MotionModule, MotionModules, attend
from stillmotion.motion.positions import follows_formula, sinusoid

BLOCK = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
PE = f"{BLOCK}.attention_blocks.1.pos_encoder.pe"


@settings(max_examples=25, deadline=None)
@given(
    clips=st.integers(1, 3),
    frames=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 8]),
    attentions=st.integers(1, 2),
    norm=st.sampled_from(["per-frame", "pooled"]),
)
def test_module_equals_the_reference(clips, frames, height, width, heads, attentions, norm):
    """Any resolution, any number of frames and clips, one or two attentions."""
    module = lively(MotionModule(16, heads, attentions, groups=4, norm=norm))
    clip = torch.randn(clips, 16, frames, height, width)
    expected = Motion(dict(module.state_dict()), heads, 4, norm == "pooled")(clip)
    ours = module(clip.transpose(1, 2).flatten(0, 1), frames)
    torch.testing.assert_close(ours, expected.transpose(1, 2).flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_fresh_modules_add_nothing():
    hidden = torch.randn(8, 16, 3, 3)
    assert torch.equal(MotionModule(16, groups=4)(hidden, 4), hidden)


def test_heads_and_groups_must_divide_the_channels():
    with pytest.raises(AttachError, match="20 channels cannot have 8 heads and 4 norm groups"):
        MotionModule(20, heads=8, groups=4)


@pytest.mark.parametrize("limit", [1, 3, 12, 100])
def test_attention_in_pieces_is_the_same(limit):
    """CUDA kernels take 65535 rows at most; the rows are independent."""
    q, k, v = torch.randn(3, 2, 12, 5, 4)
    torch.testing.assert_close(attend(q, k, v, limit), attend(q, k, v))


def test_attention_in_training_on_a_cpu_is_the_same():
    """bf16 with gradients takes another way; both are compared with float32."""
    base = torch.randn(3, 2, 12, 5, 4)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        leaf = base.detach().clone().to(dtype).requires_grad_(True)
        out = attend(*leaf)
        out.float().square().sum().backward()
        results[dtype] = torch.cat([out.float().flatten(), leaf.grad.float().flatten()])
    error = results[torch.bfloat16] - results[torch.float32]
    assert error.norm() < 0.02 * results[torch.float32].norm()


def test_gradients_equal_with_checkpointing_inside():
    hidden, grads, runs = torch.randn(8, 16, 3, 3), [], []
    for enabled in (False, True):
        module = lively(MotionModule(16, groups=4)).requires_grad_(True)
        module.gradient_checkpointing = enabled
        count = []
        module.temporal_transformer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        module(hidden, 4).square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
        runs.append(len(count))
    assert runs == [1, 2]
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*grads, strict=True))


# positions


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 130), channels=st.integers(1, 40).map(lambda n: 2 * n))
def test_positions_are_the_formula(frames, channels):
    torch.testing.assert_close(
        sinusoid(frames, channels), reference_positions(frames, channels), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [24, 32, 64])
def test_stored_formula_is_dropped_and_altered_tables_are_kept(dtype, length):
    table = sinusoid(length, 32)[None].to(dtype)
    assert follows_formula(table)
    net = MotionModules(TINY_MOTION)
    names = set(net.state_dict())
    net.load_state_dict({**net.state_dict(), PE: table})
    assert set(net.state_dict()) == names
    altered = table * 0.9
    net.load_state_dict({**net.state_dict(), PE: altered})
    assert torch.equal(net.state_dict()[PE], altered)
    net.load_state_dict({name: net.state_dict()[name] for name in names})
    assert set(net.state_dict()) == names


def test_an_altered_table_is_used():
    net, hidden = tiny_motion(), torch.randn(8, 32, 4, 4)
    altered = torch.randn(1, 32, 32)
    other = MotionModules.from_state(TINY_MOTION, {**net.state_dict(), PE: altered})
    name = "down_blocks.0.motion_modules.0"
    module = other.modules_by_name()[name]
    expected = Motion(
        {k[len(name) + 1 :]: v for k, v in other.state_dict().items() if k.startswith(name)}, 4, 8, False
    )(hidden.unflatten(0, (2, 4)).transpose(1, 2))
    torch.testing.assert_close(
        module(hidden, 4), expected.transpose(1, 2).flatten(0, 1), rtol=1e-4, atol=1e-4
    )
    assert not torch.equal(module(hidden, 4), net.modules_by_name()[name](hidden, 4))


def test_positions_kept_from_inference_mode_do_not_break_training():
    hidden = torch.randn(6, 16, 2, 2)
    module = lively(MotionModule(16, groups=4)).requires_grad_(True)
    with torch.inference_mode():
        module(hidden, 3)
    module(hidden, 3).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


# sets of modules


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_is_the_canonical_layout(family):
    spec = FAMILIES[family].config
    with torch.device("meta"):
        net = MotionModules(spec)
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == spec.shapes()


@pytest.mark.parametrize(
    ("family", "modules", "tensors", "millions"),
    [
        ("sd15-v1", 20, 520, 417.14),
        ("sd15-v2", 21, 546, 453.2),
        ("sd15-v3", 20, 520, 417.14),
        ("sdxl-beta", 15, 390, 236.8),
        ("hotshot-xl", 15, 390, 236.8),
        ("animatelcm", 21, 546, 453.2),
    ],
)
def test_the_families_have_the_published_sizes(family, modules, tensors, millions):
    """docs/formats.md 2; tensors without the two positional tables per module."""
    spec = FAMILIES[family].config
    parameters = sum(torch.Size(shape).numel() for shape in spec.shapes().values())
    assert (len(spec.modules()), len(spec.shapes())) == (modules, tensors)
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_one_attention_as_in_sparsectrl():
    net = MotionModules(replace(TINY_MOTION, attentions=1, mid=False, up=()))
    names = net.state_dict()
    assert len(net.modules_by_name()) == 2 and not any("attention_blocks.1" in n or "up_" in n for n in names)


def test_from_state_is_strict_and_shares_the_tensors():
    net = tiny_motion()
    state = net.state_dict()
    again = MotionModules.from_state(TINY_MOTION, state)
    assert all(again.state_dict()[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    name = "up_blocks.1.motion_modules.0.temporal_transformer.proj_in.weight"
    with pytest.raises(Mismatch, match=rf"tiny motion .* {name} is missing, expected \(32, 32\)"):
        MotionModules.from_state(TINY_MOTION, {k: v for k, v in state.items() if k != name})
    with pytest.raises(Mismatch, match=r"extra is \(1,\), expected no such tensor"):
        MotionModules.from_state(TINY_MOTION, state | {"extra": torch.zeros(1)})
    with pytest.raises(Mismatch, match=r"proj_in.weight is \(64, 64\), expected \(32, 32\)"):
        MotionModules.from_state(TINY_MOTION, state | {name: torch.zeros(64, 64)})


UNETS = {
    "tiny": tiny_unet,
    "tiny sdxl": lambda: tiny_unet("sdxl"),
    "asymmetric": asymmetric,
    "no mid": lambda: unet_of(True, block_out_channels=(16,), mid_block_type=None),
    "mid without text": lambda: unet_of(
        True, block_out_channels=(16,), mid_block_type="UNetMidBlock2D", attention_head_dim=8
    ),
    "self-attention blocks": lambda: UNet2DConditionModel(
        down_block_types=("AttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "AttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=(2, 1),
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=(4, 8),
    ),
    "odd widths": lambda: unet_of(True, False, block_out_channels=(12, 20), norm_num_groups=4),
    "up-blocks that do not mirror": lambda: UNet2DConditionModel(
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        mid_block_type=None,
        block_out_channels=(32, 32, 64, 64),
        norm_num_groups=None,
        cross_attention_dim=16,
        attention_head_dim=8,
        act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
    ),
}


@pytest.mark.parametrize("kind", UNETS)
def test_for_unet_fits_any_unet(kind):
    unet = UNETS[kind]().eval()
    net = lively(MotionModules.for_unet(unet))
    assert net.spec.mid == (kind not in ("no mid", "mid without text", "up-blocks that do not mirror"))
    assert {n: tuple(t.shape) for n, t in net.state_dict().items()} == net.spec.shapes()
    x, text = torch.randn(6, 4, 16, 16), torch.randn(6, 5, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(6, 32), "time_ids": torch.rand(6, 6)}
    with torch.no_grad():
        before = unet(x, 7, text, added_cond_kwargs=added).sample
        with attach_motion(unet, net, 3):
            moved = unet(x, 7, text, added_cond_kwargs=added).sample
        assert not torch.allclose(before, moved, atol=1e-3)
        assert torch.equal(unet(x, 7, text, added_cond_kwargs=added).sample, before)


def test_for_unet_takes_overrides_and_family_settings():
    unet = unet_of(True, True, block_out_channels=(32, 64))
    spec = MotionModules.for_unet(unet, mid=False, positions=12, name="mine", heads=4).spec
    assert (spec.name, spec.mid, spec.positions, spec.heads, spec.up) == ("mine", False, 12, (4, 4), None)
    assert MotionModules.for_unet(asymmetric(), heads=(4, 8, 2)).spec.heads == (4, 8, 2)
    with torch.device("meta"):
        sdxl = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
        )
        spec = MotionModules.for_unet(sdxl, mid=False).spec
    row = FAMILIES["sdxl-beta"].config
    assert spec == replace(row, name="custom") and spec.base == "sdxl"
