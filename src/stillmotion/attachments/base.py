"""Attachment: what is put on a UNet by hooks and comes off as a whole; a subclass writes `on_attach`.

    class Fade(Attachment):
        def __init__(self, curve):
            self.curve = curve                                     # a factor for each frame of the clip

        def on_attach(self, unet):
            yield unet.mid_block.register_forward_hook(self.after)

        def after(self, block, args, output):                      # (clips*frames, c, h, w)
            each = [self.curve[frame] for frame in self.context.images(len(output))]
            return output * output.new_tensor(each).view(-1, 1, 1, 1)

    with Fade([1.0, 0.9, 0.8, 0.7]).attach(pipe, frames=4): ...

What is yielded is anything with `.remove()`, such as what torch's `register_forward_hook` and
`register_forward_pre_hook` return. Hooks do nothing while the attachment is not `enabled`. The `state_dict`
of the UNet is the same throughout, and after `detach` it computes what it did before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from stillmotion.attachments.frames import FrameContext
from stillmotion.errors import AttachError
from stillmotion.motion.slots import unwrap_unet

if TYPE_CHECKING:
    from typing_extensions import Self


class Handle(Protocol):
    """What takes off one thing that was put on; one with an attribute `enabled` is switched along."""

    def remove(self) -> None: ...


class Attachment:
    """Base class: attached by `.attach(pipeline_or_unet)` until `.detach()` or the end of a `with`.

    A subclass writes `on_attach(unet)`, and `check_frames` if it cannot do any number of frames. It needs no
    `super().__init__()`.
    """

    _handles: Sequence[Handle] = ()
    _context: FrameContext | None = None
    _enabled = True
    _on: tuple[nn.Module, Any] | None = None  # a tuple: no part of a subclass that is a Module

    def on_attach(self, unet: nn.Module) -> Iterable[Handle]:
        """Puts on what it does and returns, or better yields, a handle for each thing.

        When it raises, everything yielded so far and every hook on the UNet that it made come off again.
        """
        raise NotImplementedError(f"{type(self).__name__} has no on_attach(unet)")

    def check_frames(self, frames: int) -> None:
        """Raises `AttachError` if it cannot do so many frames in one call of the UNet."""

    def network_of(self, target: Any) -> nn.Module:
        """The network that hooks go on; `AttachError` for what is no plain, uncompiled UNet."""
        return unwrap_unet(unet_of(target))

    def attach(self, target: Any, frames: int | None = None) -> Self:
        """Put it on a UNet2DConditionModel or the `unet` of any diffusers pipeline.

        Args:
            target: the pipeline or UNet.
            frames: images per clip in the batch; those of what is attached already if not given (else 1).

        `AttachError` if it is attached already, does not fit, or others hold clips of another length.
        """
        if self.attached:
            raise AttachError(f"{type(self).__name__} is attached already: detach it first, or make another.")
        network = self.network_of(target)
        context = FrameContext.on(network)
        context.join(self, network, frames)
        self._on, self._context = (network, target), context
        first = RemovableHandle.next_id
        handles: list[Handle] = []
        self._handles = handles
        with ExitStack() as undo:
            undo.callback(_remove_hooks, network, first)
            undo.callback(self.detach)
            given = self.on_attach(network)
            for handle in [given] if given is None else given:
                self._take(handle)
                handles.append(handle)
            undo.pop_all()
        self._on = (network, None)
        return self

    def detach(self) -> None:
        """Take it off: the UNet is what it was before. A second call does nothing."""
        handles, self._handles = self._handles, ()
        if self._context is not None and self._on is not None:
            self._context.leave(self, self._on[0])
        self._on = None
        with ExitStack() as stack:  # all of them, the last first, also when one fails
            for handle in handles:
                stack.callback(handle.remove)

    def remove(self) -> None:
        """The same as `detach`, so that one attachment can be a handle of another."""
        self.detach()

    @property
    def unet(self) -> nn.Module | None:
        """The UNet (or other network) that it is on."""
        return None if self._on is None else self._on[0]

    @property
    def target(self) -> Any:
        """What `attach` was given, a pipeline or a UNet; only inside `on_attach`."""
        return None if self._on is None else self._on[1]

    @property
    def attached(self) -> bool:
        """Whether it is on a network."""
        return self._context is not None and any(other is self for other in self._context.attachments)

    @property
    def enabled(self) -> bool:
        """Whether it acts; switching it off leaves its hooks on, and they change nothing."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled and self.attached:
            self.check_frames(self.context.at_once)
        self._enabled = bool(enabled)
        for handle in self._handles:
            if hasattr(handle, "enabled"):
                handle.enabled = self._enabled

    @property
    def context(self) -> FrameContext:
        """Which frames of the clip a call of the UNet holds; one object for all that is attached to it."""
        if self._context is None:
            self._context = FrameContext()
        return self._context

    @property
    def frames(self) -> int:
        """Images per clip; setting it sets it for everything that is attached to the UNet."""
        return self.context.total

    @frames.setter
    def frames(self, frames: int) -> None:
        self.context.set_total(frames, self)

    def __enter__(self) -> Self:
        if not self.attached:
            raise AttachError(f"{type(self).__name__} is not attached: with attachment.attach(pipeline): ...")
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _take(self, handle: Handle) -> None:
        if not hasattr(handle, "remove"):
            raise AttachError(
                f"{type(self).__name__}.on_attach gave a {type(handle).__name__}, which has no remove(): "
                "give what register_forward_hook returns."
            )
        if isinstance(handle, RemovableHandle):
            hooks = handle.hooks_dict_ref()
            if hooks is not None:
                hooks[handle.id] = _Switched(self, hooks[handle.id])
        elif hasattr(handle, "enabled"):
            handle.enabled = self._enabled


class _Switched:
    """A hook that changes nothing while its attachment is not enabled."""

    def __init__(self, attachment: Attachment, hook: Any) -> None:
        self.attachment, self.hook = attachment, hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook(*args, **kwargs) if self.attachment._enabled else None


def unet_of(target: Any) -> nn.Module:
    """The UNet of a pipeline, or the network given; `AttachError` for anything else."""
    network = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
    if isinstance(network, nn.Module):
        return network
    raise AttachError(
        f"{type(target).__name__} has no UNet: give a diffusers pipeline of Stable Diffusion or SDXL, or its "
        "UNet."
    )


def _remove_hooks(network: nn.Module, first: int) -> None:
    """Take off the hooks whose number is `first` or later."""
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number in hooks if number >= first]:
                del hooks[number]
