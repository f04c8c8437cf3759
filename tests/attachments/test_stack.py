"""stillmotion.attach: everything that goes on a pipeline by one call, and any sequence of on and off."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loras import motion_parts, random_parts
from safetensors.torch import save_file
from test_attachment import Fade, Shift, run, traces
from tiny import tiny_lora, tiny_motion, tiny_pipeline, tiny_unet

import stillmotion as sm
from stillmotion.attachments.frames import FrameContext
from stillmotion.attachments.lora import LoraAttachment, attach_deltas
from stillmotion.attachments.motion import MotionAttachment, attach_motion
from stillmotion.checkpoints import lora_model
from stillmotion.errors import AttachError, Mismatch, WrongKind

FRAMES = 4
PIPELINE = tiny_pipeline()
DELTAS = random_parts(PIPELINE, ("unet",), spread=0.2)


class Boom(Exception):
    pass


@pytest.fixture
def pipeline():
    return tiny_pipeline()


def test_one_call_is_each_alone_in_its_order(pipeline) -> None:
    unet, motion, lora = pipeline.unet, tiny_motion(), sm.Lora(DELTAS)
    fade, shift = Fade([1, 0.5, 0.25, 0]), Shift(0.5)
    alone = (fade.attach(unet, FRAMES), shift.attach(unet), attach_motion(unet, motion, FRAMES, 0.5))
    with alone[0], alone[1], alone[2], lora.attach(unet, weight=0.25):
        expected = run(unet)
    before = run(unet)
    with sm.attach(
        pipeline, fade, shift, motion=motion, loras={lora: 0.25}, frames=FRAMES, motion_scale=0.5
    ) as stack:
        assert torch.equal(run(unet), expected) and stack.frames == FRAMES
        assert (stack.scale, [each.weight.spec for each in stack.loras]) == ([0.5], [0.25])
        assert {id(each.context) for each in (stack, fade, shift, stack.motion, *stack.loras)} == {
            id(stack.context)
        }
        stack.enabled = False
        assert torch.equal(run(unet), before)
        stack.enabled = True
        assert torch.equal(run(unet), expected)
    assert torch.equal(run(unet), before) and not traces(unet)


def test_the_forms_that_motion_and_loras_may_have(pipeline, tmp_path) -> None:
    motion, unet = tiny_motion(), pipeline.unet
    save_file(tiny_lora(), tmp_path / "style.safetensors")
    with attach_motion(unet, motion, FRAMES):
        expected = run(unet)
    for form in (
        lambda: sm.attach(pipeline, motion, frames=FRAMES),
        lambda: sm.attach(unet, motion=motion, frames=FRAMES),
        lambda: sm.attach(unet, [motion], frames=FRAMES, scale=[1.0]),
        lambda: sm.attach(unet, motion, FRAMES),
        lambda: sm.attach(unet, MotionAttachment(motion), frames=FRAMES),
    ):
        with form():
            assert torch.equal(run(unet), expected)
    with sm.attach_lora(pipeline, tmp_path / "style.safetensors"):
        styled = run(unet)
    lora = sm.Lora.load(tmp_path / "style.safetensors")
    path = str(tmp_path / "style.safetensors")
    for loras in (path, [path], {path: 1.0}, lora, [lora], {lora: 1}):
        with sm.attach(pipeline, loras=loras, frames=FRAMES):
            assert torch.equal(run(unet), styled)
    with sm.attach(pipeline, lora, frames=FRAMES):
        assert torch.equal(run(unet), styled)
    with sm.attach(pipeline, motion) as stack:
        assert stack.frames == 16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))])
def test_a_copied_or_pickled_unet_carries_all_of_it(pipeline, copied) -> None:
    unet, before = pipeline.unet, run(pipeline.unet)
    deltas = random_parts(PIPELINE, ("unet", "text_encoder"), magnitude="rows", spread=0.2)
    with sm.attach(pipeline, Shift(0.5), motion=tiny_motion(), loras=sm.Lora(deltas), frames=FRAMES):
        expected, twin = run(unet), copied(unet)
    assert torch.equal(run(unet), before) and torch.equal(run(twin), expected)
    for each in FrameContext.on(twin).attachments:
        each.detach()
    assert torch.equal(run(twin), before) and not traces(twin)


def test_the_subclass_of_the_docs_runs_as_it_stands(pipeline) -> None:
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.partition("## An attachment of your own")[2].partition("```python\n")[2].partition("```")[0]
    assert len([line for line in block.partition("with sm.")[0].splitlines() if line]) <= 15
    block = block.replace("num_images_per_prompt=4", "num_images_per_prompt=4, num_inference_steps=2")
    for pipe in (pipeline, tiny_pipeline("sdxl")):
        before, names = [*map(id, pipe.unet.modules())], {"pipe": pipe, "motion": tiny_motion()}
        exec(block, names)
        assert len(names["images"]) == 4
        assert not traces(pipe.unet) and [*map(id, pipe.unet.modules())] == before


def test_a_motion_lora_finds_the_motion_that_is_attached(pipeline) -> None:
    motion = tiny_motion()
    lora, unet = sm.Lora(motion_parts(motion, spread=0.2)), pipeline.unet
    with attach_motion(unet, motion, FRAMES), lora.attach(pipeline, motion, 0.5):
        expected = run(unet)
    with sm.attach(pipeline, motion=motion, loras={lora: 0.5}, frames=FRAMES):
        assert torch.equal(run(unet), expected)
    with sm.attach(pipeline, motion=motion, frames=FRAMES), lora.attach(pipeline, weight=0.5):
        assert torch.equal(run(unet), expected)
    with pytest.raises(WrongKind, match="there is no motion here"):
        sm.attach(pipeline, loras=lora)
    assert not traces(unet) and not any(module._forward_hooks for module in motion.modules())


def test_what_does_not_fit_leaves_nothing(pipeline) -> None:
    wide = sm.Lora(random_parts(tiny_pipeline("sdxl"), ("unet",)))
    fade = Fade([1] * 4)
    with pytest.raises(Mismatch, match="does not fit the UNet"):
        sm.attach(pipeline, fade, motion=tiny_motion(), loras=wide, frames=FRAMES)
    with pytest.raises(AttachError, match="tiny motion has positions for 32 frames at once, not 33"):
        sm.attach(pipeline, fade, motion=tiny_motion(), frames=33)
    with pytest.raises(AttachError, match=r"is no Attachment: name files, as motion=\.\.\. or loras="):
        sm.attach(pipeline, "style.safetensors")
    with pytest.raises(AttachError, match="No motion is attached here"), sm.attach(pipeline, fade) as stack:
        stack.scale = 2.0
    assert not traces(pipeline.unet) and not fade.attached


def test_shapes_alone_tell_whether_a_lora_fits(pipeline, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(lora_model, "build_layers", never)
    sm.Lora(DELTAS).check_fit(pipeline)
    for parts in (random_parts(tiny_pipeline("sdxl"), ("unet",)), motion_parts(tiny_motion())):
        with pytest.raises((Mismatch, WrongKind)):
            sm.Lora(parts).check_fit(pipeline)


def test_weights_by_frame_follow_a_window(pipeline) -> None:
    """The frames of a window have the weights that they have in the whole clip."""
    unet = pipeline.unet
    with attach_deltas(unet, DELTAS["unet"], "0:0,7:1", frames=8) as lora:
        whole = run(unet, 8)
        for part in (range(2, 6), [7, 0]):
            with lora.context.part(part):
                generator = torch.Generator().manual_seed(0)
                x, text = (torch.randn(8, *size, generator=generator) for size in ((4, 8, 8), (7, 32)))
                with torch.no_grad():
                    found = unet(x[list(part)], 321, encoder_hidden_states=text[list(part)]).sample
            torch.testing.assert_close(found, whole[list(part)], rtol=1e-5, atol=1e-5)


# any sequence

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["attach", "detach", "enable", "disable", "raise", "fail", "frames"]),
        st.integers(0, 4),
    ),
    max_size=14,
)
UNET = tiny_unet()
KINDS = [
    lambda: MotionAttachment(tiny_motion(resnet_norm="pooled")),
    lambda: Fade([1, 0.5, 0.25, 0]),
    lambda: Shift(0.5),
    lambda: LoraAttachment(sm.Lora(DELTAS).place, 0.5),
    lambda: MotionAttachment(tiny_motion(2)),
]


class Fails(sm.Attachment):
    def on_attach(self, unet):
        yield unet.conv_in.register_forward_hook(lambda *_: 1 / 0)
        unet.register_forward_hook(lambda *_: 1 / 0)
        raise Boom


@settings(max_examples=16, deadline=None)
@given(STEPS)
def test_any_sequence_ends_bit_identical(steps) -> None:
    """attach, detach, switch, exceptions and lengths in any order; what acts is what is on and enabled."""
    unet = UNET
    before, keys, modules = run(unet), list(unet.state_dict()), [*map(id, unet.modules())]
    made = [kind() for kind in KINDS]
    for step, which in steps:
        one = made[which]
        if step == "attach" and not one.attached:
            one.attach(unet, FRAMES)
        elif step == "detach":
            one.detach()
        elif step in ("enable", "disable"):
            one.enabled = step == "enable"
        elif step == "raise" and not one.attached:
            with pytest.raises(Boom), one.attach(unet, FRAMES):
                raise Boom
        elif step == "fail":
            with pytest.raises(Boom):
                Fails().attach(unet)
        elif step == "frames":
            with pytest.raises(AttachError):
                one.frames = 0
        assert list(unet.state_dict()) == keys
        if not any(each.attached and each.enabled for each in made):
            assert torch.equal(run(unet), before)
    acting = [each for each in made if each.attached and each.enabled]
    assert not acting or not torch.equal(run(unet), before)
    for one in made:
        one.detach()
    assert torch.equal(run(unet), before) and not traces(unet)
    assert [*map(id, unet.modules())] == modules
