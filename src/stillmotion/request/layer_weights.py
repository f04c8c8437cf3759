"""The weight of an adapter: everywhere, on a part of the model, in a block, along the frames.

    0.8                              everywhere
    unet:0.8,text:0.5                on parts: unet, text (all text encoders), motion
    down:0.5,mid:1,up_blocks.1:0     in blocks; the most specific name that fits a layer counts
    0:0,15:1                         in frames: straight lines between these, level before and after

Kinds mix: what parts and blocks give is multiplied by the weight of the frame. Text is encoded once for a
clip, so a text encoder gets the mean over the frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillmotion.errors import RequestError

PARTS = ("unet", "text", "text_encoder", "text_encoder_2", "motion")
BLOCKS = ("down", "mid", "up", "down_blocks", "mid_block", "up_blocks")
SHORT = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
FORM = "a number, or pairs such as unet:0.8,text:0.5 or down:0.5,up:1 or (by frame) 0:0,15:1"


LARGEST = 1000
"""Bound of a weight; sliders use up to 20."""
LAST_FRAME = 10**6


@dataclass(frozen=True)
class LayerWeights:
    """One number for each layer and frame; `spec` is what it was made from, for JSON."""

    spec: float | dict[str, float]
    by_layer: dict[str, float] = field(default_factory=dict)
    by_frame: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, value: LayerWeights | float | str | Mapping[str, float] | Mapping[int, float]
    ) -> LayerWeights:
        """From a number, text as above, or a mapping; RequestError in one sentence if it is none of them."""
        if isinstance(value, LayerWeights):
            return value
        if isinstance(value, str) and ":" in value:
            pairs: Mapping[Any, Any] = dict(_pair(part) for part in value.split(","))
        elif isinstance(value, Mapping):
            pairs = value
        else:
            return cls(_number(value))
        spec = {str(key).strip(): _number(number) for key, number in pairs.items()}
        if not spec:
            raise RequestError(f"A weight is empty; expected {FORM}.")
        late = next(
            (key for key in spec if key.isdecimal() and (len(key) > 9 or int(key) > LAST_FRAME)), None
        )
        if late is not None:
            raise RequestError(f"A weight is given for frame {_short(late)}, but clips end at {LAST_FRAME}.")
        by_frame = {int(key): number for key, number in spec.items() if key.isdecimal()}
        by_layer = {key: number for key, number in spec.items() if not key.isdecimal()}
        for key in by_layer:
            if key not in PARTS and key.partition(".")[0] not in BLOCKS:
                raise RequestError(
                    f"A weight is given for {key!r}, which is no part ({', '.join(PARTS)}), block "
                    f"(down, mid, up, down_blocks.1) or frame number; expected {FORM}."
                )
        return cls(
            spec, {_long(key): number for key, number in by_layer.items()}, dict(sorted(by_frame.items()))
        )

    def for_layer(self, part: str, path: str = "") -> float:
        """The weight of the layer `path` of a part (unet, text_encoder, text_encoder_2, motion)."""
        if isinstance(self.spec, float):
            return self.spec
        pieces = path.removeprefix("text_model.").split(".")
        blocks = (".".join(pieces[:n]) for n in range(len(pieces), 0, -1))
        group = ("text",) if part.startswith("text") else ()
        return next((self.by_layer[key] for key in (*blocks, part, *group) if key in self.by_layer), 1.0)

    def for_frames(self, frames: int) -> list[float] | None:
        """The curve's value in each frame; None where it has none."""
        return [self._value(frame) for frame in range(frames)] if self.by_frame else None

    def _value(self, frame: int) -> float:
        before = max((key for key in self.by_frame if key <= frame), default=min(self.by_frame))
        after = min((key for key in self.by_frame if key >= frame), default=max(self.by_frame))
        part = (frame - before) / (after - before) if after > before else 0.0
        return self.by_frame[before] + part * (self.by_frame[after] - self.by_frame[before])


def _pair(part: str) -> tuple[str, str]:
    key, _, number = part.partition(":")
    return key.strip(), number


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or number != number or abs(number) == float("inf"):
        raise RequestError(f"A weight is {_short(value)}; expected {FORM}.")
    if abs(number) > LARGEST:
        raise RequestError(f"A weight is {number:g}, but weights lie between -{LARGEST} and {LARGEST}.")
    return number


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "too large a number"
    return text if len(text) <= 60 else text[:57] + "..."


def _long(key: str) -> str:
    head, dot, rest = key.partition(".")
    return SHORT.get(head, head) + dot + rest
