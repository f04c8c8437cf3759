"""How strongly an adapter acts: everywhere, on a part of the model, in a block, along the frames.

    0.8                              everywhere
    unet:0.8,text:0.5                on parts: unet, text (all text encoders), motion
    down:0.5,mid:1,up_blocks.1:0     in blocks; the most specific name that fits a layer counts
    0:0,15:1                         in frames: straight lines between these, level before and after

Kinds mix: what parts and blocks give is multiplied by the curve along the frames. Text is encoded once for a
clip, so a text encoder gets the curve's mean. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stillmotion.errors import RequestError

PARTS = ("unet", "text", "text_encoder", "text_encoder_2", "motion")
BLOCKS = ("down", "mid", "up", "down_blocks", "mid_block", "up_blocks")
SHORT = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
FORM = "a number, or pairs such as unet:0.8,text:0.5 or down:0.5,up:1 or (by frame) 0:0,15:1"


LARGEST = 1000
"""Bound of a weight; sliders use up to 20."""
LAST_FRAME = 10**6


@dataclass(frozen=True)
class Strength:
    """One number for each layer and frame; `plain` is what it was made from, for JSON."""

    plain: float | dict[str, float]
    places: dict[str, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Strength | float | str | Mapping[str | int, float]) -> Strength:
        """From a number, text as above, or a mapping; RequestError in one sentence if it is none of them."""
        if isinstance(value, Strength):
            return value
        if isinstance(value, str) and ":" in value:
            value = dict(_pair(part) for part in value.split(","))
        if not isinstance(value, Mapping):
            return cls(_number(value))
        plain = {str(key).strip(): _number(number) for key, number in value.items()}
        if not plain:
            raise RequestError(f"A weight is empty; expected {FORM}.")
        late = next(
            (key for key in plain if key.isdecimal() and (len(key) > 9 or int(key) > LAST_FRAME)), None
        )
        if late is not None:
            raise RequestError(f"A weight is given for frame {_short(late)}, but clips end at {LAST_FRAME}.")
        curve = {int(key): number for key, number in plain.items() if key.isdecimal()}
        places = {key: number for key, number in plain.items() if not key.isdecimal()}
        for key in places:
            if key not in PARTS and key.partition(".")[0] not in BLOCKS:
                raise RequestError(
                    f"A weight is given for {key!r}, which is no part ({', '.join(PARTS)}), block "
                    f"(down, mid, up, down_blocks.1) or frame number; expected {FORM}."
                )
        return cls(plain, {_long(key): number for key, number in places.items()}, dict(sorted(curve.items())))

    def at(self, part: str, path: str = "") -> float:
        """The weight of the layer `path` of a part (unet, text_encoder, text_encoder_2, motion)."""
        if isinstance(self.plain, float):
            return self.plain
        pieces = path.removeprefix("text_model.").split(".")
        blocks = (".".join(pieces[:n]) for n in range(len(pieces), 0, -1))
        group = ("text",) if part.startswith("text") else ()
        return next((self.places[key] for key in (*blocks, part, *group) if key in self.places), 1.0)

    def along(self, frames: int) -> list[float] | None:
        """The curve's value in each frame; None where it has none."""
        return [self._value(frame) for frame in range(frames)] if self.curve else None

    def _value(self, frame: int) -> float:
        before = max((key for key in self.curve if key <= frame), default=min(self.curve))
        after = min((key for key in self.curve if key >= frame), default=max(self.curve))
        part = (frame - before) / (after - before) if after > before else 0.0
        return self.curve[before] + part * (self.curve[after] - self.curve[before])


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
