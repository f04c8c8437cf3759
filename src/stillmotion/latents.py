"""A clip before decoding: latents and the request they came from, on disk. Knows no models.

Decoding comes last and needs the most memory, so that is where long jobs die; what was sampled is kept in a
file first, and decoding can be repeated without sampling again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from stillmotion.atomic import replacing
from stillmotion.errors import Damaged, RequestError
from stillmotion.request import Request
from stillmotion.weights.finite import check_finite

if TYPE_CHECKING:
    from torch import Tensor

EXTENSION = ".latents.safetensors"


@dataclass(frozen=True, eq=False)
class Latents:
    """What the sampler made: (frames, c, h, w) float32 on the CPU, and the complete request."""

    tensor: Tensor
    request: Request

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes a safetensors file with the request in its metadata, whole or not at all."""
        from safetensors.torch import save_file

        with replacing(Path(path), overwrite) as unfinished:
            save_file({"latents": self.tensor.contiguous()}, unfinished, {"request": self.request.to_json()})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Reads what `save` wrote; Damaged when it is something else."""
        wrong = f"{path} does not hold the latents of a clip"
        try:
            with safe_open(path, "pt") as file:
                request = (file.metadata() or {}).get("request")
                tensor = file.get_tensor("latents") if "latents" in file.keys() else None  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{wrong} ({error}); give a file that ends in {EXTENSION}.") from error
        if request is None or tensor is None:
            raise Damaged(f"{wrong}; give a file that ends in {EXTENSION}.")
        try:
            latents = cls(tensor, Request.from_json(request))
        except RequestError as error:
            raise Damaged(f"{path} cannot be decoded: {error}") from None
        if latents.request.frames is None or latents.request.fps is None:
            raise Damaged(f"{path} cannot be decoded: its request does not say frames and fps.")
        if tensor.ndim != 4 or len(tensor) != latents.request.frames or not tensor.is_floating_point():
            raise Damaged(
                f"{path} cannot be decoded: it holds {tensor.dtype} of shape {tuple(tensor.shape)}, but the "
                f"latents of {latents.request.frames} frames were expected (frames, channels, height, width)."
            )
        check_finite({"latents": tensor}, str(path))
        return latents
