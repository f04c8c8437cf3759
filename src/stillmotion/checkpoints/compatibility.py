"""Whether files are what they are taken for, and whether they fit each other; one sentence if not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillmotion.checkpoints.file_kinds import BASES, KINDS, LOOKED_FOR, TEXT_WIDTHS, FileInfo
from stillmotion.errors import Mismatch, UnknownFile, WrongKind
from stillmotion.motion.config import MotionConfig
from stillmotion.request.installed_models import DEFAULT_MODEL

SUGGESTIONS = {
    "sd15": ("an SD 1.5 module such as v3_sd15_mm.ckpt", "a Stable Diffusion 1.5 checkpoint"),
    "sd2": ("a module trained for it", "a Stable Diffusion 2 checkpoint"),
    "sdxl": ("an SDXL module such as mm_sdxl_v10_beta.ckpt", "an SDXL checkpoint"),
    DEFAULT_MODEL: (f"the bundled motion ({DEFAULT_MODEL})", f"the bundled base ({DEFAULT_MODEL})"),
}
"""For a base: a motion module to use with it; for a module: a base to use with it."""


def require_kind(found: FileInfo, *wanted: str) -> None:
    """Nothing if the file is of a wanted kind; else `WrongKind` (or `UnknownFile`), saying what it is for."""
    if found.kind in wanted:
        return
    if not found.known:
        raise UnknownFile(
            f"{found.name} is not a file we know ({found.details.get('tensors', 'no')} tensors); "
            f"looked for {'; '.join(LOOKED_FOR)}."
        )
    words = " or ".join(KINDS[kind].title for kind in wanted)
    raise WrongKind(f"{found.name} is {found.title}, not {words}. Its use: {found.usage}.")


def base_of_unet(config: Mapping[str, Any]) -> str:
    """The family of a UNet by its diffusers config: sd15, sd2, sdxl, or custom."""
    channels = tuple(config.get("block_out_channels", ()))
    text = TEXT_WIDTHS.get(config.get("cross_attention_dim", 0), "")
    known = {"sd15": (320, 640, 1280, 1280), "sd2": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}
    return text if known.get(text) == channels else "custom"


def check_compatible(
    spec: MotionConfig, unet_config: Mapping[str, Any], motion: str = "the motion", base: str = "the base"
) -> None:
    """Nothing if the motion modules fit the UNet of this diffusers config; else `Mismatch`, with a way out.

    `motion` and `base` are the names the user gave. Only shapes count: SD 1.5 modules fit SD 2 as well.
    """
    channels = tuple(unet_config["block_out_channels"])
    layers = unet_config.get("layers_per_block", 2)
    layers = (layers,) * len(channels) if isinstance(layers, int) else tuple(layers)
    if (spec.channels, spec.layers) == (channels, layers):
        return
    family = base_of_unet(unet_config)
    module, _ = SUGGESTIONS.get(family, ("a module made for it", ""))
    _, checkpoint = SUGGESTIONS.get(spec.base, ("", "a base that it was made for"))
    layer_words = f" with {layers} layers, not {spec.layers}" if spec.channels == channels else ""
    raise Mismatch(
        f"{motion} is a motion module for {BASES.get(spec.base, spec.base)} {spec.channels} but {base} is "
        f"{BASES[family]} {channels}{layer_words}. Use {module}, or {checkpoint}."
    )
