"""A clip before decoding: latents and the request they came from, on disk.

Decoding comes last and needs the most memory, so that is where long jobs die; what was sampled is kept in a
file first (`keep`), and decoding can be repeated without sampling again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from stillmotion.atomic import LONGEST, replacing, sweep
from stillmotion.checkpoints.finite import check_finite
from stillmotion.errors import Damaged, OutputError, RequestError
from stillmotion.foreign import parse_json
from stillmotion.request import Request
from stillmotion.request.model_files import ModelFile, read_records
from stillmotion.sampling.progress import ProgressCallback, no_progress
from stillmotion.video import Clip

if TYPE_CHECKING:
    from torch import Tensor

EXTENSION = ".latents.safetensors"
FILES_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Latents:
    """What the sampler made: (frames, c, h, w) float32 on the CPU, and the complete request.

    `files` are records of the models that were used.
    """

    tensor: Tensor
    request: Request
    files: tuple[ModelFile, ...] = ()

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes a safetensors file with the request in its metadata, whole or not at all."""
        from safetensors.torch import save_file

        files = json.dumps([file.to_dict(Path(path).parent) for file in self.files])
        metadata = {"request": self.request.to_json(), "files": files}
        with replacing(Path(path), overwrite) as unfinished:
            save_file({"latents": self.tensor.contiguous()}, unfinished, metadata)
        return Path(path)

    def decode(self, vae: Any, on_progress: ProgressCallback = no_progress) -> Clip:
        """Pixels, a few frames at a time, in the precision of the VAE; Mismatch if it has other channels."""
        import numpy as np

        from stillmotion.diffusion.vae import decode_slices

        request = self.request
        if request.fps is None:
            raise RequestError("The request of these latents does not say fps.")
        slices, done, frames = [], 0, len(self.tensor)
        on_progress("decoding", 0, frames)
        for part in decode_slices(vae, self.tensor):
            slices.append(part)
            done += len(part)
            on_progress("decoding", done, frames)
        return Clip(np.concatenate(slices), request.fps, request, files=self.files)

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Reads what `save` wrote; Damaged when it is something else."""
        wrong = f"{path} does not hold the latents of a clip"
        if not Path(path).is_file():  # a pipe would wait for ever
            raise Damaged(f"{wrong}: there is no such file.")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensor = file.get_tensor("latents") if "latents" in file.keys() else None  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{wrong} ({error!s:.200}); give a file that ends in {EXTENSION}.") from error
        request = metadata.get("request")
        if request is None or tensor is None:
            raise Damaged(f"{wrong}; give a file that ends in {EXTENSION}.")
        try:
            files = read_records(parse_json(metadata.get("files", "[]"), FILES_BYTES), Path(path).parent)
            latents = cls(tensor, Request.from_json(request), files)
        except (RequestError, ValueError) as error:
            raise Damaged(f"{path} cannot be decoded: {error}") from None
        if latents.request.frames is None or latents.request.fps is None:
            raise Damaged(f"{path} cannot be decoded: its request does not say frames and fps.")
        if (
            tensor.ndim != 4
            or not tensor.numel()
            or len(tensor) != latents.request.frames
            or not tensor.is_floating_point()
        ):
            raise Damaged(
                f"{path} cannot be decoded: it holds {tensor.dtype} of shape {tuple(tensor.shape)}, but the "
                f"latents of {latents.request.frames} frames were expected (frames, channels, height, width)."
            )
        check_finite({"latents": tensor}, str(path))
        return latents


def latents_path(output: Path, number: int = 1) -> Path:
    """Where the latents of a clip are kept until it is written: beside it; cut where the name is too long."""
    end = output.suffix + (f"-{number}" if number > 1 else "") + EXTENSION
    stem = os.fsencode(output.stem)[: LONGEST - len(os.fsencode(end))].decode(errors="ignore")
    return output.with_name(stem + end)


def keep(latents: Latents, output: Path, since: float) -> tuple[Path | None, str]:
    """Saves the latents beside `output`, or else where this machine has room, and returns where.

    A file that stands there since before the time `since` (seconds of the epoch) is replaced; a younger one
    belongs to another run of the same output and stays. None where nothing could be written; the text says
    why the latents are not beside the output.
    """
    why = ""
    for place in (output, *(folder / output.name for folder in _refuges())):
        with suppress(OSError):
            sweep(place.parent, ours=False)
        try:
            return latents.save(next(_free(place, since)), overwrite=True), why
        except OutputError as error:
            why = why or str(error)
    return None, why


def _refuges() -> Iterator[Path]:
    """Folders for what finds no room beside its output."""
    for folder in (tempfile.gettempdir, Path.home, Path.cwd):
        with suppress(OSError, RuntimeError):  # no such folder, no home
            yield Path(folder())


def _free(output: Path, since: float) -> Iterator[Path]:
    """Names for latents that no other run that goes on now has taken."""
    for number in count(1):
        path = latents_path(output, number)
        try:
            if path.stat().st_mtime < since and number == 1:
                yield path
        except OSError:
            yield path
