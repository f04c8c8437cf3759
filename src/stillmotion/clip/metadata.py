"""The tag that every file of ours carries: frames, fps, size and the Request, as one line of ASCII JSON.

Where it lies in each format is the writers' business. ASCII, because GIF comments and PNG text know nothing
else; JSON's escapes bring any prompt through. Frames and fps stand beside the request since formats round
times and merge equal frames, and the size since video codecs want even ones.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass

from stillmotion.errors import RequestError
from stillmotion.request import Request

KEY = "stillmotion"


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
        facts = json.loads(text or "null")
        if not isinstance(facts, dict) or KEY not in facts:
            return None
        frames, fps, width, height = (facts[name] for name in ("frames", "fps", "width", "height"))
        request = facts.get("request")
        if not (int(frames) > 0 and float(fps) > 0):
            return None
        return Tag(int(frames), float(fps), int(width), int(height), _request(request) if request else None)
    except (ValueError, TypeError, KeyError):  # somebody else's JSON, or no JSON
        return None


def _request(fields: dict) -> Request | None:
    try:
        return Request.from_json(fields)
    except RequestError as error:
        warnings.warn(f"The file's request cannot be used and is left out: {error}", stacklevel=4)
        return None
