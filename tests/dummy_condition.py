"""A condition for tests: makes each frame lighter. One file, and one row (`dummy_row`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from stillmotion.attachments.base import Attachment, Handle
from stillmotion.request.fields import field
from stillmotion.sampling.conditions.base import Condition, Contribution, Run

LOADED: list[str] = []
ROW = ("tint", "dummy_condition:Tint")


class TintAttachment(Attachment):
    def __init__(self, amount: float) -> None:
        self.amount = amount

    def on_attach(self, unet: Any) -> Iterable[Handle]:
        yield unet.register_forward_hook(lambda module, args, output: (output[0] + self.amount, *output[1:]))


class Tint(Condition):
    """Adds a number to what the UNet gives."""

    flag: ClassVar[str] = "--tint"
    help: ClassVar[str] = "make the clip lighter"
    example: ClassVar[str] = "tint.safetensors:hints/,amount=0.5"
    first: ClassVar[tuple[str, ...]] = ("file", "hints")

    file: str = field(..., "weights of the tint", "it must be a path", "tint.safetensors", opens="weights")
    hints: str = field(..., "images, one a frame", "it must be a path", "hints/", opens="images")
    amount: float = field(1.0, "how much", "it must be between -2 and 2", "0.5", ge=-2, le=2)
    start: float = field(0.0, "from here", "it must be between 0 and 1", "0.2", "from", ge=0, le=1)

    def prepare(self, run: Run) -> Contribution:
        def load() -> float:
            LOADED.append(self.file)
            return 1.0

        scale = run.model(("tint", self.file), load)
        return Contribution(
            (TintAttachment(self.amount * scale),), {"eta": 0.0} if self.hints == "twice" else {}
        )
