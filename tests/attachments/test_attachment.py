"""The base class as a stranger uses it: one file, on and off, switched, safe after exceptions."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from tiny import tiny_pipeline, tiny_unet
from torch import Tensor, nn

from stillmotion.attachments.base import Attachment
from stillmotion.attachments.frames import KEY, FrameContext
from stillmotion.errors import AttachError

FRAMES = 4


class Fade(Attachment):
    """The subclass of docs/architecture.md: the middle of the UNet times a factor for each frame."""

    def __init__(self, curve):
        self.curve = curve

    def on_attach(self, unet):
        yield unet.mid_block.register_forward_hook(self.after)

    def after(self, block, args, output):
        each = [self.curve[frame] for frame in self.context.images(len(output))]
        return output * output.new_tensor(each).view(-1, 1, 1, 1)


@dataclass
class Shift(Attachment):
    """A pre-hook with keywords on the UNet itself, as ControlNet's is."""

    by: float = 1.0

    def on_attach(self, unet):
        return [unet.register_forward_pre_hook(self.before, with_kwargs=True)]

    def before(self, unet, args, kwargs):
        return args, kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"] + self.by}


class Breaks(Attachment):
    """Raises after it put hooks on, of which it has yielded one."""

    def on_attach(self, unet):
        yield unet.register_forward_hook(lambda *_: 1 / 0)
        unet.conv_in.register_forward_hook(lambda *_: 1 / 0)
        raise KeyError("no")


@torch.no_grad()
def run(unet: nn.Module, batch: int = 2 * FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(batch, *size, generator=generator) for size in ((4, 8, 8), (7, 32)))
    return unet(x, 321, encoder_hidden_states=text).sample


def traces(unet: nn.Module) -> list:
    hooks = [h for m in unet.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]
    return hooks + [name for name in vars(unet) if name == KEY]


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.mark.parametrize("make", [lambda: Fade([1, 0.5, 0.25, 0]), lambda: Shift(2.0)])
def test_on_and_off_and_switched(unet, make) -> None:
    before, keys, modules = run(unet), list(unet.state_dict()), [*map(id, unet.modules())]
    attachment = make()
    with attachment.attach(unet, frames=FRAMES) as same:
        assert same is attachment and attachment.attached and list(unet.state_dict()) == keys
        acting = run(unet)
        attachment.enabled = False
        assert torch.equal(run(unet), before)
        attachment.enabled = True
        assert torch.equal(run(unet), acting) and not torch.equal(acting, before)
    assert not attachment.attached and torch.equal(run(unet), before) and not traces(unet)
    assert [*map(id, unet.modules())] == modules
    with attachment.attach(unet, frames=FRAMES):
        assert torch.equal(run(unet), acting), "it can be put on again"


def test_a_value_by_frame_meets_its_frame(unet) -> None:
    before = run(unet)
    with Fade([1, 1, 0, 1]).attach(unet, frames=FRAMES):
        changed = (run(unet) != before).flatten(1).any(1).tolist()
    assert changed == [False, False, True, False] * 2


def test_a_pipeline_stands_for_its_unet() -> None:
    pipeline = tiny_pipeline()
    with Fade([0.5]).attach(pipeline) as attachment:
        assert attachment.unet is pipeline.unet and attachment.target is None
        assert not torch.equal(run(pipeline.unet), run(tiny_unet()))
    assert torch.equal(run(pipeline.unet), run(tiny_unet()))


def test_what_raises_while_it_is_put_on_leaves_nothing(unet) -> None:
    before, breaks = run(unet), Breaks()
    with Fade([1, 0.5]).attach(unet, frames=2) as fade:
        faded = run(unet)
        with pytest.raises(KeyError):
            breaks.attach(unet, frames=2)
        assert not breaks.attached and torch.equal(run(unet), faded) and fade.context.attachments == [fade]
    assert torch.equal(run(unet), before) and not traces(unet)


def test_one_handle_that_fails_does_not_keep_the_others_on(unet) -> None:
    class Stuck:
        def remove(self):
            raise OSError("stuck")

    class Two(Attachment):
        def on_attach(self, unet):
            return [unet.register_forward_hook(lambda *_: 1 / 0), Stuck()]

    attachment = Two().attach(unet)
    with pytest.raises(OSError, match="stuck"):
        attachment.detach()
    assert not traces(unet) and not attachment.attached


@pytest.mark.parametrize("given", [None, [None], [3]])
def test_what_is_no_handle_is_named(unet, given) -> None:
    class Wrong(Attachment):
        def on_attach(self, unet):
            return given

    with pytest.raises(AttachError, match=r"Wrong.on_attach gave a .*remove\(\)"):
        Wrong().attach(unet)
    assert not traces(unet)


def test_refusals_in_one_sentence(unet) -> None:
    fade = Fade([1]).attach(unet)
    with pytest.raises(AttachError, match="Fade is attached already: detach it first"):
        fade.attach(tiny_unet())
    fade.detach()
    with pytest.raises(AttachError, match="Fade is not attached"), fade:
        pass
    for wrong in (object(), None, nn.Linear(2, 2), torch.compile(unet)):
        with pytest.raises(AttachError, match="has no UNet|is not a UNet|is compiled"):
            fade.attach(wrong)
    for frames in (0, True, 2.0, "4"):
        with pytest.raises(AttachError, match="expected a whole number of at least 1"):
            fade.attach(unet, frames)
    assert not traces(unet)


# one context


def test_all_attachments_of_a_unet_share_one_context(unet) -> None:
    fade, shift = Fade([1] * 8).attach(unet, frames=FRAMES), Shift().attach(unet)
    assert fade.context is shift.context is FrameContext.on(unet) and shift.frames == FRAMES
    shift.frames = 8
    assert fade.frames == 8
    fade.detach()
    assert FrameContext.on(unet) is shift.context
    shift.detach()
    assert not traces(unet) and FrameContext.on(unet) is not shift.context


def test_who_says_how_long_clips_are_takes_that_with_him(unet) -> None:
    shift = Shift().attach(unet)
    with Fade([1] * 4).attach(unet, frames=4):
        assert shift.frames == 4
    assert shift.frames == 1
    with Fade([1] * 8).attach(unet, frames=8):
        assert shift.frames == 8


def test_two_lengths_at_once_are_refused_unless_the_first_sleeps(unet) -> None:
    fade = Fade([1] * 8).attach(unet, frames=4)
    with pytest.raises(AttachError, match="Fade holds clips of 4 frames on this UNet, not 8"):
        Shift().attach(unet, frames=8)
    assert fade.frames == 4 and fade.context.attachments == [fade]
    fade.enabled = False
    assert Shift().attach(unet, frames=8).frames == 8


def test_every_attachment_is_asked_whether_it_can(unet) -> None:
    class Few(Attachment):
        def on_attach(self, unet):
            return []

        def check_frames(self, frames):
            if frames > 4:
                raise AttachError(f"not {frames}")

    few = Few().attach(unet, frames=4)
    with pytest.raises(AttachError, match="not 5"):
        few.context.total = 5
    with pytest.raises(AttachError, match="not 5"), few.context.clip(5):
        pass
    assert few.frames == 4
    few.context.window = 4
    few.frames = 64
    assert (few.context.at_once, few.frames) == (4, 64)
    few.detach()
    fade = Fade([1] * 8).attach(unet, frames=8)
    for frames in (None, 8):
        with pytest.raises(AttachError, match="not 8"):
            Few().attach(unet, frames)
    assert fade.context.attachments == [fade]


def test_a_window_of_the_clip(unet) -> None:
    context = Fade([1] * 8).attach(unet, frames=8).context
    with context.part(range(2, 5)):
        assert (context.frames, context.total, [*context.indices]) == (3, 8, [2, 3, 4])
        assert context.images(6) == [2, 3, 4, 2, 3, 4]
        with pytest.raises(AttachError, match="batch of 8, which is not made of clips of 3 frames"):
            context.images(8)
    assert context.images(8) == list(range(8))


# copies


def test_a_copy_of_the_unet_has_attachments_of_its_own(unet) -> None:
    before = run(unet)
    fade = Fade([1, 0.5, 0.25, 0]).attach(unet, frames=FRAMES)
    acting, twin = run(unet), copy.deepcopy(unet)
    fade.detach()
    assert torch.equal(run(unet), before) and torch.equal(run(twin), acting)
    (other,) = FrameContext.on(twin).attachments
    other.detach()
    assert torch.equal(run(twin), before) and not traces(twin)


def test_a_pickled_unet_carries_its_attachments(unet) -> None:
    with Fade([1, 0.5, 0.25, 0]).attach(unet, frames=FRAMES), Shift(1.0).attach(unet):
        acting, twin = run(unet), pickle.loads(pickle.dumps(unet))
    assert torch.equal(run(twin), acting)
    for attachment in FrameContext.on(twin).attachments:
        attachment.detach()
    assert torch.equal(run(twin), run(unet)) and not traces(twin)
