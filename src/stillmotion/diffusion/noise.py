"""The noise of a clip: how much of it the frames share.

With independent noise in every frame, which frames are neighbours must be learnt from the images alone; noise
that is shared in part from frame to frame tells it, in training and in sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor


def progressive_noise(noise: Tensor, alpha: float) -> Tensor:
    """Independent standard normal noise (f, ...) of f frames -> noise of which a part goes on.

    Frame i is `(alpha * frame i-1 + noise i) / sqrt(1 + alpha^2)`, so each frame alone stays standard normal
    and frames n apart correlate by `(alpha / sqrt(1 + alpha^2)) ** n`. `alpha=0` gives the noise itself. The
    rule is that of Ge et al. 2023, "Preserve Your Own Correlation", which recommends 2.
    """
    if not alpha:
        return noise
    size = (1 + alpha * alpha) ** 0.5
    frames = [noise[0]]
    for fresh in noise[1:]:
        frames.append((alpha * frames[-1] + fresh) / size)
    return torch.stack(frames)
