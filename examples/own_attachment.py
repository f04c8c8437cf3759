"""A steering of your own in one class: what an Attachment puts on the UNet comes off again, bit for bit.

This one calms the clip down: the middle of the UNet sees, in each frame, a part of what the frame before has.

    python examples/own_attachment.py
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import stillmotion as sm


class Calm(sm.Attachment):
    """Mixes the middle of the UNet with that of the frame before.

    Args:
        share: of the frame before, 0 (nothing changes) to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def on_attach(self, unet: nn.Module) -> Iterator[Any]:
        yield unet.mid_block.register_forward_hook(self.after)

    def after(self, block: nn.Module, inputs: Any, hidden: Tensor) -> Tensor:
        clips = hidden.unflatten(0, (-1, self.frames))  # (clips, frames, c, h, w)
        before = torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
        return torch.lerp(clips, before, self.share).flatten(0, 1)


animator = sm.Animator.load()
plain = animator.animate("dog face, flat style", seed=5)
with Calm(0.5).attach(animator.pipeline, frames=len(plain)):
    calm = animator.animate("dog face, flat style", seed=5)
sm.grid([plain, calm]).save("calm.webp", overwrite=True)
print("calm.webp: without on the left, with on the right")
