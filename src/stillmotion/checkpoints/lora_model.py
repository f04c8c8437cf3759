"""LoRAs of every format as one thing that goes on a pipeline and comes off again.

    Lora.load("style.safetensors")                     any layout, any algorithm; a hub name
    with lora.attach(pipeline, weight=0.8): ...      on UNet, text encoders and motion
    lora.save("style.safetensors", layout="peft")      kohya, peft, diffusers, animatediff

Nothing is merged and nothing replaced: its changes are added by forward hooks (stillmotion.lora), so the
pipeline is the same bit for bit once they are off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillmotion.atomic import replacing
from stillmotion.attachments.lora import LoraAttachment, Placed, WeightLike, build_layers, check_layers
from stillmotion.attachments.motion import attached_motion
from stillmotion.checkpoints.checkpoint import Source, open_checkpoint
from stillmotion.checkpoints.compatibility import require_kind
from stillmotion.checkpoints.embeddings import Embedding, bundled_embeddings
from stillmotion.checkpoints.file_kinds import BASES, FileInfo
from stillmotion.checkpoints.finite import check_finite
from stillmotion.checkpoints.lora.adapter_config import (
    WEIGHTS,
    check_config,
    read_adapter_config,
    saves_whole,
    settings_of,
)
from stillmotion.checkpoints.lora.alphas import KEY
from stillmotion.checkpoints.lora.detect import OTHER_MODELS, UNAPPLIED
from stillmotion.checkpoints.lora.layouts import BUNDLED, LoraLayout, LoraState, parse, write
from stillmotion.errors import Damaged, Mismatch, OutputError, UnknownFile, WrongKind
from stillmotion.lora.deltas import LayerDelta, LoraAlpha
from stillmotion.request.aliases import layout_of_kind

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

KINDS = ("lora", "domain-adapter", "motion-lora")
"""Kinds of files that hold changes of layers."""

NETWORKS = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "motion": "motion",
}
"""Parts of a LoRA in words."""


NO_CONFIG = (
    "{name} has no adapter_config.json beside it, where peft keeps its scale: it is applied with scale 1. "
    "Give the folder that peft wrote."
)


class Lora:
    """The changes in a LoRA file (LoRA, LoCon, LoHa, LoKr, DoRA, GLoRA, (IA)^3, OFT, BOFT, differences).

    `parts` are its LayerDelta by part (unet, text_encoder, text_encoder_2, motion) and path of the layer;
    `name` is what the user called it, `kind` what the file is. `bundled` are the tensors of words that came
    with it (`words`): `attach` puts them nowhere, `Animator.load` teaches them to the base if they fit.
    `notes` say what is not certain.
    """

    def __init__(
        self,
        parts: LoraState,
        name: str = "this LoRA",
        kind: FileInfo | None = None,
        bundled: Mapping[str, Tensor] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.parts = {part: dict(layers) for part, layers in parts.items() if layers}
        self.name = name
        self.kind = kind or FileInfo("motion-lora" if self.parts.keys() == {"motion"} else "lora", name)
        self.bundled, self.notes = dict(bundled or {}), notes

    @classmethod
    def load(cls, source: Source, base: str | None = None) -> Self:
        """The LoRA in a file, a folder or a hub name; `base` is the family it is meant for (sd15, sd2, sdxl).

        Raises `Mismatch` for another base, `WrongKind` for files that hold something else, `UnknownFile` for
        keys of no LoRA we know, `Damaged` or `Unsafe`.
        """
        opened = open_checkpoint(source)
        path, name = opened.path, opened.name
        config = read_adapter_config(path)
        if config:
            check_config(config, name)
        found = opened.info
        require_kind(found, *KINDS)
        _check_algorithm(found)
        _check_base(found, base)
        header = opened.header
        state = opened.state() | _loose_alphas(header.extras)
        check_finite(state, name)
        metadata = header.metadata | ({KEY: json.dumps(settings_of(config))} if config else {})
        try:
            parts = parse(state, metadata, saves_whole(config))
        except (UnknownFile, Damaged) as error:
            raise type(error)(f"{name}: {error}") from error
        bundled = {key: tensor for key, tensor in state.items() if key.startswith(BUNDLED)}
        alone = path.name in WEIGHTS and not config
        return cls(parts, name, found, bundled, (NO_CONFIG.format(name=name),) if alone else ())

    @property
    def words(self) -> list[Embedding]:
        """The words for prompts that came with it."""
        return bundled_embeddings(self.bundled, self.name)

    def save(
        self,
        path: str | Path,
        layout: LoraLayout | None = None,
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Writes it as one .safetensors, whole or not at all, and returns where.

        Args:
            path: the file, ending in .safetensors.
            layout: of its keys; see below.
            dtype: of its tensors; as they are if not given.
            metadata: more strings for the header, such as kohya's ss_* keys.

        `layout` is animatediff for a motion LoRA and kohya for others if not given; WrongKind where it cannot
        hold what this LoRA does.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise OutputError(f"A LoRA is saved as .safetensors, not as {path.name}: give it that ending.")
        known = layout_of_kind(layout, "lora") or ("animatediff" if self.moves else "kohya")
        if self.bundled and known != "kohya":
            raise WrongKind(
                f"{self.name} brings a word for prompts ({next(iter(self.bundled))}), which the {known} "
                "layout cannot hold: save it in the kohya layout."
            )
        tensors, own = write(self.parts, cast("LoraLayout", known))
        tensors |= self.bundled
        tensors = {name: _storable(name, tensor, dtype) for name, tensor in tensors.items()}
        with replacing(path, overwrite=True) as unfinished:
            save_file(tensors, unfinished, metadata={**(metadata or {}), **own})
        return path

    @property
    def moves(self) -> bool:
        """Whether it changes motion modules."""
        return "motion" in self.parts

    def attach(
        self,
        pipeline: Any,
        motion: nn.Module | None = None,
        weight: WeightLike = 1.0,
        frames: int | None = None,
        lora_alpha: LoraAlpha = "use",
    ) -> LoraAttachment:
        """Put it on the pipeline's UNet and text encoders and on the motion: `with lora.attach(...):`.

        Args:
            pipeline: a diffusers pipeline, or a UNet alone.
            motion: what a motion LoRA goes on; the motion attached to this UNet if not given.
            weight: how strongly it acts, as in `LayerWeights`.
            frames: images per clip in a batch, for weights by frame; as attached already if not given.
            lora_alpha: "ignore" where alpha should not count.

        Mismatch where a layer is not there or of another size; WrongKind for a motion LoRA without motion.
        """
        place = partial(self.place, motion=motion, lora_alpha=lora_alpha)
        return LoraAttachment(place, weight).attach(pipeline, frames)

    def place(self, pipeline: Any, motion: nn.Module | None = None, lora_alpha: LoraAlpha = "use") -> Placed:
        """Its LoRA layers for this pipeline and motion, with their networks; errors as in `attach`.

        Args:
            pipeline: a diffusers pipeline, or a UNet alone.
            motion: what a motion LoRA goes on.
            lora_alpha: "ignore" where alpha should not count.
        """
        return {
            part: (network, self._fitting(pipeline, part, partial(build_layers, network, deltas, lora_alpha)))
            for part, network, deltas in self._networks(pipeline, motion)
        }

    def check_fit(self, pipeline: Any, motion: nn.Module | None = None) -> None:
        """Raises as `attach` would, from the shapes alone: nothing is built and nothing attached."""
        for part, network, deltas in self._networks(pipeline, motion):
            self._fitting(pipeline, part, partial(check_layers, network, deltas))

    def _networks(
        self, pipeline: Any, motion: nn.Module | None
    ) -> Iterator[tuple[str, nn.Module, dict[str, LayerDelta]]]:
        """Each part with the network it goes on, and its changes by that network's own paths."""
        alone = {"unet": pipeline} if hasattr(pipeline, "down_blocks") else {}
        motion = motion if motion is not None else attached_motion(pipeline)
        for part, deltas in self.parts.items():
            network = motion if part == "motion" else alone.get(part) or getattr(pipeline, part, None)
            if part == "motion" and motion is None:
                raise WrongKind(
                    f"{self.name} is {self.kind.title}, and there is no motion here: give it a motion module "
                    "with `motion=FILE`, or leave it out."
                )
            if network is None:
                raise Mismatch(
                    f"{self.name} changes a {NETWORKS[part]}, which {_base_name(pipeline)} does not have: "
                    "it is for another kind of model."
                )
            yield part, network, own_paths(network, deltas)

    def _fitting(self, pipeline: Any, part: str, make: Callable[[], T]) -> T:
        """What `make` gives; its `Mismatch` with the names of this LoRA and of the network."""
        try:
            return make()
        except Mismatch as error:
            where = "the motion" if part == "motion" else f"the {NETWORKS[part]} of {_base_name(pipeline)}"
            fits = BASES.get(self.kind.base or "", "another model")
            raise Mismatch(
                f"{self.name} is a LoRA for {fits} and does not fit {where}: {error}. Use a LoRA made for it."
            ) from error


def attach_lora(
    pipeline: Any,
    lora: Lora | Source,
    weight: WeightLike = 1.0,
    frames: int | None = None,
    motion: nn.Module | None = None,
    lora_alpha: LoraAlpha = "use",
) -> LoraAttachment:
    """Put a LoRA, or the one in a file, on a diffusers pipeline: `with attach_lora(...):`, or detach later.

    Args:
        pipeline: a diffusers pipeline, or a UNet alone.
        lora: a `Lora`, a file, a folder or a hub name.
        weight: how strongly it acts, as in `LayerWeights`.
        frames: images per clip in a batch, for weights by frame; as attached already if not given.
        motion: what a motion LoRA goes on; the motion attached to this UNet if not given.
        lora_alpha: "ignore" where alpha should not count.

    Errors as in `Lora.load` and `Lora.attach`.
    """
    lora = lora if isinstance(lora, Lora) else Lora.load(lora)
    return lora.attach(pipeline, motion, weight, frames, lora_alpha)


def own_paths(network: nn.Module, deltas: Mapping[str, LayerDelta]) -> dict[str, LayerDelta]:
    """The same changes by the paths that this network has for these layers.

    transformers 5.6 took `text_model.` out of CLIPTextModel. Motion of families without a middle (v1, v3)
    takes no changes of it, so a motion LoRA made for v2 goes on v3.
    """
    names = {name for name, _ in network.named_modules()}
    if "text_model" not in names:
        deltas = {path.removeprefix("text_model."): change for path, change in deltas.items()}
    without_middle = "down_blocks" in names and "mid_block" not in names
    return {
        path: change
        for path, change in deltas.items()
        if not (without_middle and path.startswith("mid_block.motion_modules."))
    }


def _check_algorithm(found: FileInfo) -> None:
    if found.family in dict(UNAPPLIED):
        raise WrongKind(
            f"{found.name} is {found.title}; stillmotion applies LoRA, LoCon, DoRA, LoHa, LoKr, GLoRA, "
            "(IA)^3, OFT and BOFT of LyCORIS, and differences. Convert it, or merge it into a checkpoint "
            "with the tool it was made with."
        )


def _check_base(found: FileInfo, base: str | None) -> None:
    if found.base in dict(OTHER_MODELS):
        raise Mismatch(
            f"{found.name} is a LoRA for {found.base}, which has no UNet of Stable Diffusion: use one made "
            "for Stable Diffusion 1.x, 2.x or XL."
        )
    if base and found.base not in (None, "custom", base):  # of other bases only the shapes can tell
        raise Mismatch(
            f"{found.name} is a LoRA for {BASES[found.base]}, but the base is {BASES.get(base, base)}. "
            "Use a LoRA made for this base, or a base of its family."
        )


def _loose_alphas(extras: Mapping[str, Any]) -> dict[str, Tensor]:
    """Alphas that a pickle holds as plain numbers instead of tensors."""
    numbers = {key: value for key, value in extras.items() if isinstance(value, (int, float))}
    return {key: torch.tensor(float(value)) for key, value in numbers.items() if key.endswith(".alpha")}


def _base_name(pipeline: Any) -> str:
    name = getattr(pipeline, "name_or_path", None) or ""
    return Path(name).name or f"this {type(pipeline).__name__}"


def _storable(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy of its own on the CPU (safetensors refuses shared memory); alphas keep their precision."""
    dtype = None if name.endswith(".alpha") else dtype
    return tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)
