"""Motion and LoRAs of an Animator: built at its first clip, then asleep on the pipeline between clips.

Asleep they change nothing: the pipeline computes, bit for bit, what it does without them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from stillmotion.attachments.base import Attachment, unet_of
from stillmotion.attachments.lora import LoraAttachment
from stillmotion.attachments.motion import MotionAttachment
from stillmotion.attachments.stack import AttachmentStack
from stillmotion.motion.slots import unwrap

if TYPE_CHECKING:
    from stillmotion.checkpoints.lora_model import Lora
    from stillmotion.motion.module import MotionModules
    from stillmotion.request.layer_weights import LayerWeights
    from stillmotion.request.request import CompleteRequest

ENCODERS = ("text_encoder", "text_encoder_2")


class SleepingAttachments:
    """What an Animator attaches, built again only for another pipeline, motion, dtype or set of LoRAs.

    When this object is gone, they come off.
    """

    def __init__(self) -> None:
        self._stack = AttachmentStack()
        self._of: tuple[Any, ...] = ()
        self._finalizer: weakref.finalize[[], Any] | None = None

    @contextmanager
    def awake(
        self,
        pipeline: Any,
        motion: MotionModules | None,
        loras: Mapping[Lora, LayerWeights | float],
        request: CompleteRequest,
    ) -> Iterator[None]:
        """They act as the request says for one block and sleep after it; an exception takes them off."""
        stack = self._built(pipeline, motion, loras, request)
        for attachment, weight in zip(stack.loras, loras.values(), strict=True):
            attachment.weight = weight
            attachment.renew()
        if stack.motion is not None:
            stack.motion.scale, stack.motion.group_norm = request.motion_scale, request.group_norm
            stack.motion.single_frame = request.single_frame_motion == "run"
        with ExitStack() as undo:
            undo.callback(self.detach)
            with stack.context.clip(request.frames):
                stack.enabled = True
                yield
            stack.enabled = False
            undo.pop_all()

    def detach(self) -> None:
        """Take them off; the next clip builds them again."""
        if self._finalizer is not None:
            self._finalizer()

    def _built(
        self,
        pipeline: Any,
        motion: MotionModules | None,
        loras: Mapping[Lora, LayerWeights | float],
        request: CompleteRequest,
    ) -> AttachmentStack:
        unet = unwrap(unet_of(pipeline))
        encoders = (getattr(pipeline, name, None) for name in ENCODERS)
        of = (unet, unet.dtype, *encoders, motion, *loras, request.lora_alpha)
        if self._stack.attached and of == self._of:
            return self._stack
        self.detach()
        found: list[Attachment] = [] if motion is None else [MotionAttachment(motion)]
        for lora in loras:
            place = partial(lora.place, motion=motion, lora_alpha=request.lora_alpha)
            found.append(LoraAttachment(place))
        stack = AttachmentStack(*found)
        stack.enabled = False
        self._stack, self._of = stack.attach(pipeline), of
        self._finalizer = weakref.finalize(self, stack.detach)
        self._finalizer.atexit = False
        return stack
