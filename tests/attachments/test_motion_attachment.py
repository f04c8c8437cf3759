"""Whatever goes on comes off, and the traps of design.md 1 to 5."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from diffusers import UNetMotionModel
from oracles.peers import lively, sd15_shaped
from peft import LoraConfig
from tiny import tiny_motion, tiny_pipeline, tiny_unet
from torch import nn

from stillmotion.attachments.motion import attach_motion
from stillmotion.errors import AttachError
from stillmotion.motion.module import MotionModules

FRAMES = 4


class Boom(Exception):
    pass


@pytest.fixture
def unet():
    return tiny_unet()


def run(unet, batch: int = 2 * FRAMES, seed: int = 0, dtype: torch.dtype = torch.float32):
    torch.manual_seed(seed)
    x, text = torch.randn(batch, 4, 8, 8), torch.randn(batch, 7, 32)
    with torch.no_grad():
        return unet(x.to(dtype), 321, text.to(dtype)).sample


def hooks(unet) -> list:
    return [
        hook for m in unet.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]


# on and off


def test_detach_restores_bit_for_bit(unet):
    before, keys, children = run(unet), list(unet.state_dict()), [*map(id, unet.modules())]
    attachment = attach_motion(unet, tiny_motion(resnet_norm="pooled"), FRAMES)
    assert attachment.attached and list(unet.state_dict()) == keys and [*map(id, unet.modules())] == children
    assert (run(unet) - before).abs().max() > 1e-2
    attachment.detach()
    attachment.detach()
    assert torch.equal(run(unet), before) and not attachment.attached and not hooks(unet)
    assert list(unet.state_dict()) == keys and [*map(id, unet.modules())] == children


def test_detached_after_an_exception(unet):
    before = run(unet)
    with pytest.raises(Boom), attach_motion(unet, tiny_motion(), FRAMES):
        raise Boom
    assert torch.equal(run(unet), before) and not hooks(unet)


def test_detached_after_an_exception_inside_the_unet(unet):
    before = run(unet)
    failing = unet.conv_norm_out.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(Boom))
    with pytest.raises(Boom), attach_motion(unet, tiny_motion(resnet_norm="pooled"), FRAMES):
        run(unet)
    failing.remove()
    assert torch.equal(run(unet), before) and not hooks(unet)


@pytest.mark.parametrize("first_off", [0, 1])
def test_two_attachments_come_off_in_any_order(unet, first_off):
    nets = [tiny_motion(1, resnet_norm="pooled"), tiny_motion(2, resnet_norm="pooled")]
    still = run(unet)
    alone = []
    for net in nets:
        with attach_motion(unet, net, FRAMES):
            alone.append(run(unet))
    attachments = [attach_motion(unet, net, FRAMES) for net in nets]
    assert not any(torch.equal(run(unet), other) for other in (still, *alone))
    attachments[first_off].detach()
    assert torch.equal(run(unet), alone[1 - first_off])
    attachments[1 - first_off].detach()
    assert torch.equal(run(unet), still) and not hooks(unet)


def test_a_misfit_leaves_no_hook(unet):
    with pytest.raises(AttachError):
        attach_motion(unet, [tiny_motion(), lively(MotionModules.for_unet(sd15_shaped()))], FRAMES)
    assert not hooks(unet)


def test_a_copy_of_the_unet_carries_its_own_motion(unet):
    with attach_motion(unet, tiny_motion(), FRAMES):
        moved, twin = run(unet), copy.deepcopy(unet)
    assert torch.equal(run(twin), moved) and not torch.equal(run(unet), moved)


# strength, frames, several motions


@pytest.mark.parametrize("row", [{}, {"resnet_norm": "pooled", "motion_norm": "pooled"}])
@pytest.mark.parametrize("setting", [{"scale": 0.0}, {"frames": 1}])
def test_nothing_to_do_is_bit_identical_to_no_motion(unet, row, setting):
    before, broken = run(unet), tiny_motion(**row)
    for parameter in broken.parameters():
        nn.init.constant_(parameter, torch.nan)
    with attach_motion(unet, broken, **{"frames": FRAMES} | setting):
        assert torch.equal(run(unet), before)


def test_strength_scales_the_residual(unet):
    """One slot only: with several, what a later module adds depends on what the earlier ones did."""
    net = tiny_motion()
    for name, module in net.modules_by_name().items():
        if name != "up_blocks.1.motion_modules.1":
            nn.init.zeros_(module.temporal_transformer.proj_out.weight)
            nn.init.zeros_(module.temporal_transformer.proj_out.bias)
    seen = []
    tap = unet.conv_norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    attachment = attach_motion(unet, net, FRAMES)
    for scale in (0.0, 1.0, 0.25, -2.0):
        attachment.scale = scale
        run(unet)
    tap.remove()
    attachment.detach()
    still, full, quarter, back = seen
    torch.testing.assert_close(quarter - still, 0.25 * (full - still), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(back - still, -2 * (full - still), rtol=1e-3, atol=1e-4)


def test_motions_together_act_in_parallel(unet):
    """h + s1*d1(h) + s2*d2(h): any order, two halves are a whole, zero leaves the other."""
    one, two = tiny_motion(1), tiny_motion(2, mid=False)
    results = {}
    for name, nets, scales in [
        ("one", one, 1.0),
        ("halves", [one, one], [0.5, 0.5]),
        ("one and none of two", [one, two], [1.0, 0.0]),
        ("one, two", [one, two], [0.7, 0.4]),
        ("two, one", [two, one], [0.4, 0.7]),
    ]:
        with attach_motion(unet, nets, FRAMES, scales):
            results[name] = run(unet)
    assert torch.equal(results["one"], results["one and none of two"])
    torch.testing.assert_close(results["one"], results["halves"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results["one, two"], results["two, one"], rtol=1e-4, atol=1e-4)
    assert (results["one"] - results["one, two"]).abs().max() > 1e-2


# the traps of design.md


def test_trap_1_attention_gives_tuples_and_resnets_tensors(unet):
    """Outputs keep their kind, and the tail of a tuple goes through."""
    kinds = []
    with attach_motion(unet, tiny_motion(), FRAMES):
        for slot in (unet.down_blocks[0].attentions[0], unet.down_blocks[1].resnets[0]):
            slot.register_forward_hook(lambda _, args, output: kinds.append(type(output)))
        run(unet)
    assert kinds == [tuple, torch.Tensor]


@pytest.mark.parametrize("in_motion", [False, True])
@pytest.mark.parametrize("in_unet", [False, True])
def test_trap_2_gradients_are_those_without_checkpointing(unet, in_unet, in_motion):
    expected = gradients(unet, tiny_motion(resnet_norm="pooled", motion_norm="pooled"), False, False)
    found = gradients(unet, tiny_motion(resnet_norm="pooled", motion_norm="pooled"), in_unet, in_motion)
    assert all(e.abs().max() > 0 for e in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def gradients(unet, net, in_unet: bool, in_motion: bool) -> dict[str, torch.Tensor]:
    (unet.enable_gradient_checkpointing if in_unet else unet.disable_gradient_checkpointing)()
    net.requires_grad_(True).set_gradient_checkpointing(in_motion)
    torch.manual_seed(0)
    x, text = torch.randn(8, 4, 8, 8), torch.randn(8, 7, 32)
    with attach_motion(unet, net, FRAMES):
        unet.requires_grad_(False)(x, 321, text).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_trap_3_frames_belong_to_the_attachment(unet):
    """Frames change between calls, guidance and several prompts multiply the batch."""
    net = tiny_motion()
    with attach_motion(unet, net, FRAMES) as attachment:
        both = run(unet, 2 * FRAMES)
        attachment.frames = 2 * FRAMES
        one_long = run(unet, 2 * FRAMES)
    with attach_motion(unet, net, 2 * FRAMES):
        assert torch.equal(run(unet, 2 * FRAMES), one_long)
    assert not torch.allclose(both, one_long, atol=1e-3)


def test_trap_3_clips_in_a_batch_do_not_see_each_other(unet):
    torch.manual_seed(0)
    x, text = torch.randn(3 * FRAMES, 4, 8, 8), torch.randn(3 * FRAMES, 7, 32)
    with torch.no_grad(), attach_motion(unet, tiny_motion(), FRAMES):
        together = unet(x, 321, text).sample
        middle = unet(x[FRAMES:-FRAMES], 321, text[FRAMES:-FRAMES]).sample
    torch.testing.assert_close(together[FRAMES:-FRAMES], middle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [{}, {"resnet_norm": "pooled"}])
def test_trap_3_a_batch_that_does_not_divide_is_refused(unet, row):
    sentence = "batch of 6, which is not made of clips of 4 frames: pass num_images_per_prompt=4 or 4 prompts"
    with attach_motion(unet, tiny_motion(**row), FRAMES), pytest.raises(AttachError, match=sentence):
        run(unet, 6)


def test_trap_4_motion_follows_the_dtype_of_the_unet_and_says_so(unet, caplog):
    net = tiny_motion()
    unet.to(torch.bfloat16)
    with (
        caplog.at_level(logging.INFO, "stillmotion"),
        attach_motion(unet, net, FRAMES),
        torch.inference_mode(),
    ):
        out = run(unet, dtype=torch.bfloat16)
        run(unet, dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16 and {p.dtype for p in net.parameters()} == {torch.bfloat16}
    said = [record.getMessage() for record in caplog.records if record.name.startswith("stillmotion")]
    assert said == ["Motion tiny follows the UNet to cpu, torch.bfloat16."]
    assert not any(p.is_inference() for p in net.parameters()), (
        "weights moved in inference mode can be trained"
    )


def test_trap_4_weights_in_training_stay_as_they_are(unet):
    net = tiny_motion().requires_grad_(True)
    x, text = torch.randn(4, 4, 8, 8), torch.randn(4, 7, 32)
    with attach_motion(unet.requires_grad_(False), net, FRAMES):
        with torch.autocast("cpu", torch.bfloat16):
            unet(x, 321, text).sample.float().mean().backward()
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        unet.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            unet(x.bfloat16(), 321, text.bfloat16()).sample.float().mean().backward()
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        with pytest.raises(
            AttachError, match=r"motion in training is torch.float32, the UNet runs in torch.bf"
        ):
            unet(x.bfloat16(), 321, text.bfloat16())


def test_trap_5_pooled_norms_are_per_instance_and_come_off():
    """v1's resnet norms: another UNet in the process, and the GroupNorm class, know nothing of it."""
    unet, other = tiny_unet(), tiny_unet()
    before, forward = run(unet), nn.GroupNorm.forward
    net = tiny_motion(resnet_norm="pooled")
    for module in net.modules_by_name().values():
        nn.init.zeros_(module.temporal_transformer.proj_out.weight)
        nn.init.zeros_(module.temporal_transformer.proj_out.bias)
    attachment = attach_motion(unet, net, FRAMES)
    assert (run(unet) - before).abs().max() > 1e-4, "the pooled norms alone change the numbers"
    assert torch.equal(run(other), before) and nn.GroupNorm.forward is forward
    assert not any("forward" in vars(m) for m in unet.modules())
    attachment.detach()
    assert torch.equal(run(unet), before)


# loaders


def test_lora_goes_on_and_off_while_attached():
    pipeline, net = tiny_pipeline(), tiny_motion()
    config = LoraConfig(r=4, target_modules=["to_q", "to_v", "conv1", "proj_in"], init_lora_weights=False)
    torch.manual_seed(0)
    pipeline.unet.add_adapter(config, "style")
    pipeline.unet.set_adapters("style")
    from peft.utils import get_peft_model_state_dict

    lora = {f"unet.{k}": v for k, v in get_peft_model_state_dict(pipeline.unet, adapter_name="style").items()}
    pipeline.unload_lora_weights()

    unet = pipeline.unet
    keys, before = list(unet.state_dict()), run(unet)
    attachment = attach_motion(unet, net, FRAMES)
    moved = run(unet)
    pipeline.load_lora_weights(lora, adapter_name="style")
    styled = run(unet)
    assert (styled - moved).abs().max() > 1e-3
    pipeline.unload_lora_weights()
    assert torch.equal(run(unet), moved) and list(unet.state_dict()) == keys
    attachment.detach()
    assert torch.equal(run(unet), before)

    pipeline.load_lora_weights(lora, adapter_name="style")
    with attach_motion(unet, net, FRAMES):
        assert torch.equal(run(unet), styled), "loaded before or after attaching: the same"
    pipeline.unload_lora_weights()
    assert torch.equal(run(unet), before)


# what is refused, in one sentence


def test_motion_for_another_unet(unet):
    net = lively(MotionModules.for_unet(sd15_shaped(), name="sd15-like"))
    with pytest.raises(AttachError) as refused:
        attach_motion(unet, net)
    assert str(refused.value) == (
        "sd15-like motion is made for another UNet: "
        "it has down 16x2 16x2 32x2 32x2, mid 32, up 32x3 32x3 16x3 16x3; "
        "this UNet has down 32x1 64x1, mid 64, up 64x2 32x2. Use motion and a base of the same family."
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": 0}, "frames is 0, expected a whole number of at least 1"),
        ({"frames": 2.5}, "frames is 2.5, expected"),
        ({"frames": 33}, "tiny motion has positions for 32 frames at once, not 33: use at most 32"),
        ({"scale": [1.0, 0.5]}, "2 scales were given for 1 motions"),
        ({"group_norm": "comfy"}, "group_norm is 'comfy', expected one of family, pooled"),
    ],
)
def test_bad_settings(unet, settings, sentence):
    with pytest.raises(AttachError, match=sentence):
        attach_motion(unet, tiny_motion(), **settings)
    assert not hooks(unet)


def test_wrapped_unets(unet):
    """Pipelines, DistributedDataParallel and the like are looked through; what cannot work says so."""
    expected, pipeline = None, tiny_pipeline()
    pipeline.unet = unet
    for wrapped in (unet, nn.DataParallel(unet), pipeline):
        with attach_motion(wrapped, tiny_motion(), FRAMES):
            moved = run(unet)
        assert expected is None or torch.equal(moved, expected)
        expected = moved
    refused = {
        "attach to the plain UNet, then compile": torch.compile(unet),
        "Linear is not a UNet2DConditionModel": nn.Linear(2, 2),
        "temporal layers of its own": UNetMotionModel.from_unet2d(unet),
    }
    for sentence, wrong in refused.items():
        with pytest.raises(AttachError, match=sentence):
            attach_motion(wrong, tiny_motion(), FRAMES)
    with pytest.raises(AttachError, match="Linear is not motion: give a MotionModel"):
        attach_motion(unet, nn.Linear(2, 2))


def test_wrapped_motion(unet):
    with attach_motion(unet, tiny_motion(), FRAMES):
        expected = run(unet)
    with attach_motion(unet, nn.DataParallel(tiny_motion()), FRAMES):
        assert torch.equal(run(unet), expected)


# what sits above the attachment


@pytest.mark.slow
def test_export_carries_the_motion(unet):
    x, text = torch.randn(8, 4, 8, 8), torch.randn(8, 7, 32)
    with torch.no_grad(), attach_motion(unet, tiny_motion(resnet_norm="pooled"), FRAMES):
        expected = unet(x, torch.tensor(321), text).sample
        exported = torch.export.export(unet, (x, torch.tensor(321), text), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x, torch.tensor(321), text).sample, expected)


@pytest.mark.slow
def test_compiled_after_attaching(unet):
    """Without a graph break; a change of frames is noticed."""
    x, text = torch.randn(8, 4, 8, 8), torch.randn(8, 7, 32)
    with torch.no_grad(), attach_motion(unet, tiny_motion(resnet_norm="pooled"), FRAMES) as attachment:
        compiled = torch.compile(unet, backend="eager", fullgraph=True)
        for frames in (FRAMES, 2):
            attachment.frames = frames
            expected = unet(x, torch.tensor(321), text).sample
            torch.testing.assert_close(compiled(x, torch.tensor(321), text).sample, expected)
