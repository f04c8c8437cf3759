"""The tag that every file of ours carries: frames, fps, size and the Request, as one line of ASCII JSON.

Where it lies in each format is the writers' business. ASCII, because GIF comments and PNG text know nothing
else; JSON's escapes bring any prompt through. Frames and fps stand beside the request since formats round
times and merge equal frames, and the size since video codecs want even ones.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass

from stillmotion.errors import RequestError, StillmotionWarning
from stillmotion.foreign import parse_json
from stillmotion.request import Request

KEY = "stillmotion"
TAG_BYTES = 2**20
LIMITS = {"frames": (1, 10**6), "fps": (1e-3, 1e4), "width": (1, 10**6), "height": (1, 10**6)}
"""What a tag may say; one that says more is none of ours."""


@dataclass(frozen=True)
class Tag:
    """What a file says about itself; sizes in pixels as stored."""

    frames: int
    fps: float
    width: int
    height: int
    request: Request | None = None

    def to_json(self) -> str:
        request = json.loads(self.request.to_json()) if self.request else None
        facts = {"frames": self.frames, "fps": self.fps, "width": self.width, "height": self.height}
        return json.dumps({KEY: 1, **facts, "request": request})


def read_tag(text: str | bytes | None) -> Tag | None:
    """The tag in a comment, or None if the comment is none of ours.

    A request that cannot be used (of a newer version, or edited by hand) is left out with a warning, because
    the pixels are good.
    """
    try:
        facts = parse_json(text or "null", TAG_BYTES)
    except ValueError:  # no JSON, or none that we would write
        return None
    if not isinstance(facts, dict) or KEY not in facts:
        return None
    numbers = [facts.get(name) for name in LIMITS]
    for number, (least, most) in zip(numbers, LIMITS.values(), strict=True):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most:
            return None
    frames, fps, width, height = numbers
    request = facts.get("request")
    request = _request(request) if isinstance(request, dict) and request else None
    return Tag(int(frames), float(fps), int(width), int(height), request)


def _request(fields: dict) -> Request | None:
    try:
        return Request.from_json(fields)
    except RequestError as error:
        warnings.warn(
            f"The file's request cannot be used and is left out: {error}", StillmotionWarning, stacklevel=4
        )
        return None
