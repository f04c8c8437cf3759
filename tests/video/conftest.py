"""What the tests of this room share."""

from __future__ import annotations

import pytest
from clip_scenes import moving_disc

from stillmotion.request import Request
from stillmotion.video import Clip


@pytest.fixture
def clip() -> Clip:
    return Clip(
        moving_disc(), 8.0, Request(prompt='ein Bär 🐻, "größer" \\ <b>と</b>\nzwei', frames=12, seed=7)
    )
