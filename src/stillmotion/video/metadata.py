"""The tag that every file of ours carries: frames, fps, size and the Request, as one line of ASCII JSON.

Where it lies in each format is the writers' business. ASCII, because GIF comments and PNG text know nothing
else; JSON's escapes bring any prompt through. Frames and fps stand beside the request since formats round
times and merge equal frames, and the size since video codecs want even ones.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillmotion.errors import RequestError, StillmotionWarning
from stillmotion.foreign import parse_json
from stillmotion.request import Request
from stillmotion.request.model_files import ModelFile, read_records

KEY = "stillmotion"
TAG_BYTES = 2**20
MOST_REQUESTS = 256
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
    requests: tuple[Request, ...] = ()
    """of the clips that are side by side, or all frames on one image"""
    files: tuple[ModelFile, ...] = ()

    def to_json(self, folder: Path = Path()) -> str:
        """For a file in this folder; requests that are too long to be read again are left out with a note."""
        facts = {"frames": self.frames, "fps": self.fps, "width": self.width, "height": self.height}
        origin: dict[str, Any] = {"request": _fields(self.request) if self.request else None}
        if self.requests:
            origin["requests"] = [_fields(request) for request in self.requests]
        if self.files:
            origin["files"] = [file.to_dict(folder) for file in self.files]
        text = json.dumps({KEY: 1, **facts, **origin})
        if len(text) <= TAG_BYTES and len(self.requests) <= MOST_REQUESTS:
            return text
        warnings.warn(
            f"The file does not say how it was made: {len(text):,} bytes for {len(self.requests) or 1} "
            f"requests are more than it carries ({TAG_BYTES:,} bytes, {MOST_REQUESTS} requests).",
            StillmotionWarning,
            stacklevel=2,
        )
        return json.dumps({KEY: 1, **facts, "request": None})


def _fields(request: Request) -> Any:
    return json.loads(request.to_json())


def read_tag(text: str | bytes | None, folder: Path = Path()) -> Tag | None:
    """The tag in a comment of a file in `folder`, or None if the comment is none of ours.

    A request that cannot be used (of a newer version, or edited by hand) is left out with a warning, because
    the pixels are good.
    """
    try:
        facts = parse_json(text or "null", TAG_BYTES)
    except ValueError:  # no JSON, or none that we would write
        return None
    if not isinstance(facts, dict) or KEY not in facts:
        return None
    numbers: list[float] = []
    for name, (least, most) in LIMITS.items():
        number = facts.get(name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most:
            return None
        numbers.append(number)
    frames, fps, width, height = numbers
    request, several = facts.get("request"), facts.get("requests")
    request = _request(request) if isinstance(request, dict) and request else None
    several = several[:MOST_REQUESTS] if isinstance(several, list) else []
    requests = [_request(fields) for fields in several if isinstance(fields, dict)]
    return Tag(
        int(frames),
        float(fps),
        int(width),
        int(height),
        request,
        tuple(each for each in requests if each is not None),
        read_records(facts.get("files"), folder),
    )


def _request(fields: dict[str, Any]) -> Request | None:
    try:
        return Request.from_json(fields)
    except RequestError as error:
        warnings.warn(
            f"The file's request cannot be used and is left out: {error}", StillmotionWarning, stacklevel=4
        )
        return None
