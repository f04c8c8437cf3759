"""Several attachments as one: attached, switched and detached together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from stillmotion.attachments.base import Attachment, Handle
from stillmotion.attachments.lora import LoraAttachment
from stillmotion.attachments.motion import MotionAttachment
from stillmotion.errors import AttachError


class AttachmentStack(Attachment):
    """Attachments that go on a pipeline in this order and come off in the opposite one."""

    def __init__(self, *attachments: Attachment) -> None:
        self.attachments = attachments

    def on_attach(self, unet: nn.Module) -> Iterator[Handle]:
        """Attaches each of them to what the stack is attached to."""
        for attachment in self.attachments:
            yield attachment.attach(self.target)

    def check_frames(self, frames: int) -> None:
        """AttachError if one of them cannot do so many frames."""
        for attachment in self.attachments:
            attachment.check_frames(frames)

    @property
    def motion(self) -> MotionAttachment | None:
        """The motion in it."""
        return next((each for each in self.attachments if isinstance(each, MotionAttachment)), None)

    @property
    def loras(self) -> list[LoraAttachment]:
        """The LoRAs in it, in their order."""
        return [each for each in self.attachments if isinstance(each, LoraAttachment)]

    @property
    def scale(self) -> list[float]:
        """The scale of each motion, as `MotionAttachment.scale`."""
        return self._motion().scale

    @scale.setter
    def scale(self, scale: float | Sequence[float]) -> None:
        self._motion().scale = scale

    def _motion(self) -> MotionAttachment:
        if self.motion is None:
            raise AttachError("No motion is attached here, so there is no scale.")
        return self.motion
