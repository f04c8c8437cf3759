"""Motion models in files: `MotionModules` that can be loaded from anything and saved.

    MotionModel.load("mm_sd_v15_v2.ckpt")      any family, any layout; a folder; a hub name; "emoji"
    model.save("motion/")                      a diffusers MotionAdapter folder
    model.save("motion.safetensors")           one file in AnimateDiff's own layout

The whole family (shape, schedule, sampling) travels in the safetensors header: a round trip loses nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from stillmotion.atomic import replacing
from stillmotion.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from stillmotion.checkpoints.compatibility import require_kind
from stillmotion.checkpoints.finite import check_finite
from stillmotion.checkpoints.hub import INSIDE
from stillmotion.checkpoints.motion_detect import METADATA_KEY, adapter_config, family_to_json
from stillmotion.checkpoints.motion_keys import EXTRAS, Layout
from stillmotion.checkpoints.motion_layout import from_canonical, to_canonical
from stillmotion.errors import OutputError, WrongKind
from stillmotion.motion.config import MotionConfig
from stillmotion.motion.families import MotionFamily
from stillmotion.motion.module import MotionModules
from stillmotion.request.aliases import layout_of_kind


class MotionModel(MotionModules):
    """All motion modules of one model, with what came beside them.

    `name` is what the user called it, `extra` holds tensors that are no motion modules (PIA's first
    convolution), `notes` what could not be told for certain when it was loaded.
    """

    def __init__(self, family: MotionFamily | MotionConfig) -> None:
        super().__init__(family)
        self.name = self.family.name
        self.extra: dict[str, Tensor] = {}
        self.notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, source: Source, *, dtype: torch.dtype | None = None) -> Self:
        """The motion in a file, a folder, a bundled model or a hub name; by default in its own dtype.

        Raises `WrongKind` for files that hold something else, `UnknownFile`, `Damaged` or `Unsafe`.
        """
        opened = _motion_in(open_checkpoint(source))
        found = opened.info
        require_kind(found, "motion")
        state = opened.state()
        check_finite(state, found.name)
        canonical = to_canonical(state, found.layout)  # type: ignore[arg-type]
        extra = {name: canonical.pop(name) for name in EXTRAS if name in canonical}
        model = cls.from_state(found.spec, canonical)  # type: ignore[arg-type]
        model.name, model.extra, model.notes = opened.source, extra, found.notes
        return model if dtype is None else model.to(dtype)

    def save(
        self,
        path: str | Path,
        layout: Layout | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
    ) -> Path:
        """Writes the model and returns where: a MotionAdapter folder, or one file if it ends in .safetensors.

        Files are replaced whole: an interrupted save leaves the old ones.

        Args:
            path: a folder, or a file ending in .safetensors.
            layout: that of a single file; "animatediff" by default.
            dtype: of the weights written; their own by default.
            variant: a part of the file's name in a folder, such as "fp16".
        """
        path = Path(path)
        single = path.suffix == ".safetensors"
        if not single and path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
            raise OutputError(
                f"Motion is saved as .safetensors or as a folder, not as {path.suffix} ({path.name})."
            )
        known = layout_of_kind(layout, "motion") or ("animatediff" if single else "diffusers")
        if not single and known != "diffusers":
            raise OutputError(
                f"A folder is a diffusers MotionAdapter; for the {known} layout name a .safetensors file."
            )
        tensors = from_canonical(self._canonical(dtype), self.spec, cast("Layout", known))
        config = None if single else json.dumps(adapter_config(self.spec), indent=2) + "\n"
        name = f"diffusion_pytorch_model{f'.{variant}' if variant else ''}.safetensors"
        metadata = {"format": "pt", METADATA_KEY: family_to_json(self.family)}
        with replacing(path if single else path / name, overwrite=True) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)
        if config is not None:
            with replacing(path / "config.json", overwrite=True) as unfinished:
                unfinished.write_text(config, encoding="utf-8")
        return path

    def _canonical(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        state = {**self.state_dict(), **self.extra}
        return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}


def _motion_in(found: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or its motion part if it is a whole pipeline."""
    if not found.is_pipeline:
        return found
    for part in INSIDE:
        if (found.path / part).is_dir():
            return Checkpoint(found.path / part, found.source)
    raise WrongKind(
        f"{found.path.name} is a text-to-image model without motion inside (looked for "
        f"{' and '.join(INSIDE)}). Give it as the base, and a motion module beside it."
    )
