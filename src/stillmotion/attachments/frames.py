"""FrameContext: which frames of the clip a call of the UNet holds. One object for each UNet, no tensors.

a clip of 4 frames, guidance doubles the batch:  images 0 1 2 3 | 0 1 2 3    frames 4, total 4
a window of it:                                  images 2 3 | 2 3            frames 2, total 4
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from stillmotion.errors import AttachError

if TYPE_CHECKING:
    from stillmotion.attachments.base import Attachment

KEY = "_stillmotion_frames"
"""Where a UNet holds its context while something is attached; no parameter, so not in the state_dict."""


class FrameContext:
    """The clip that a UNet works on, shared by all that is attached to it."""

    def __init__(self) -> None:
        self.attachments: list[Attachment] = []
        self._total = 1
        self._givers: list[object] = []  # who has said how many frames a clip has
        self._indices: tuple[int, ...] | None = None
        self._window: int | None = None

    @classmethod
    def on(cls, network: nn.Module) -> FrameContext:
        """That of a network, a new one where nothing is attached."""
        found = vars(network).get(KEY)
        return cls() if found is None else found

    @property
    def total(self) -> int:
        """Frames of the whole clip; 1 where nobody has said. Setting it sets it for all attachments."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self.set_total(total, self)

    def set_total(self, total: int, giver: object, joining: Sequence[Attachment] = ()) -> None:
        """Sets `total`, until its giver leaves or another is set; `AttachError` if one that acts refuses it.

        Args:
            total: images per clip.
            giver: who says so, such as an attachment.
            joining: attachments that are about to join and are asked too.
        """
        if isinstance(total, bool) or not isinstance(total, int) or total < 1:
            raise AttachError(f"frames is {total!r}, expected a whole number of at least 1.")
        for attachment in (*(other for other in self.attachments if other.enabled), *joining):
            attachment.check_frames(min(total, self._window or total))
        self._total = total
        self._givers = [*(other for other in self._givers if other is not giver), giver]

    @property
    def indices(self) -> Sequence[int]:
        """Numbers of the frames in the present call, in their order in the batch."""
        return range(self._total) if self._indices is None else self._indices

    @property
    def frames(self) -> int:
        """How many frames the present call holds for each clip of its batch."""
        return self._total if self._indices is None else len(self._indices)

    @property
    def at_once(self) -> int:
        """Most frames in one call: all, or those of a window."""
        return min(self._total, self._window or self._total)

    @property
    def window(self) -> int | None:
        """Most frames in one call where calls are cut into windows; None: whole clips."""
        return self._window

    @window.setter
    def window(self, window: int | None) -> None:
        for attachment in (other for other in self.attachments if other.enabled):
            attachment.check_frames(min(self._total, window or self._total))
        self._window = window

    def images(self, batch: int) -> list[int]:
        """Which frame each image of a batch is; `AttachError` if it is not made of whole clips."""
        return [*self.indices] * self.clips(batch)

    def clips(self, batch: int) -> int:
        """How many clips a batch holds; `AttachError` if it is not made of whole ones."""
        if batch % self.frames:
            raise AttachError(
                f"The UNet got a batch of {batch}, which is not made of clips of {self.frames} frames: pass "
                f"num_images_per_prompt={self.frames} or {self.frames} prompts, or set attachment.frames."
            )
        return batch // self.frames

    @contextmanager
    def clip(self, total: int) -> Iterator[None]:
        """Clips of so many frames for one block."""
        before = self._total, self._givers
        self.total = total
        try:
            yield
        finally:
            self._total, self._givers = before

    @contextmanager
    def part(self, indices: Sequence[int]) -> Iterator[None]:
        """Calls in this block hold only these frames of the clip."""
        before, self._indices = self._indices, tuple(indices)
        try:
            yield
        finally:
            self._indices = before

    def join(self, attachment: Attachment, network: nn.Module, total: int | None) -> None:
        """Adds an attachment, which may say how long clips are; the network holds this context from now on.

        Args:
            attachment: what joins.
            network: the UNet.
            total: images per clip, or None for those of what is attached already.

        `AttachError` if it cannot do so many frames, or says another number than those that act already.
        """
        acting = [other for other in self.attachments if other.enabled]
        if total not in (None, self._total) and self._givers and acting:
            raise AttachError(
                f"{type(acting[0]).__name__} holds clips of {self._total} frames on this UNet, not {total}: "
                f"detach it first, or set its .frames to {total}."
            )
        if total is None:
            attachment.check_frames(self.at_once)
        else:
            self.set_total(total, attachment, joining=[attachment])
        self.attachments.append(attachment)
        vars(network)[KEY] = self

    def leave(self, attachment: Attachment, network: nn.Module) -> None:
        """Takes an attachment out; with the last one the network is free of this context."""
        self.attachments = [other for other in self.attachments if other is not attachment]
        self._givers = [other for other in self._givers if other is not attachment]
        if not self._givers:
            self._total = 1
        if not self.attachments:
            vars(network).pop(KEY, None)
