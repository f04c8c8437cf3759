"""LoRA files of every layout <-> the changes they hold, by part of the model and path of the layer.

    parse    kohya, LyCORIS, peft, diffusers (new, old), AnimateDiff, MotionDirector -> parts
    write    parts -> the tensors and the metadata of one of these layouts

    parts    {"unet": {"mid_block.attentions.0.proj_in": LayerDelta}, "text_encoder": ..., "motion": ...}

Strict: each key is used, or an error names it. parse(*write(parts, layout)) == parts for what the layout can
hold. Pure functions; a layer's name is read by lora_layers.py, alphas in metadata by alphas.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stillmotion.checkpoints.lora.alphas import alphas_in, with_alphas
from stillmotion.checkpoints.lora.lora_layers import diffusers_layer, kohya_layer, resolve_layer
from stillmotion.checkpoints.lora.tensors import factors_of
from stillmotion.errors import Damaged, UnknownFile, WrongKind
from stillmotion.lora.deltas import Algorithm, LayerDelta

LoraState = dict[str, dict[str, LayerDelta]]
LoraLayout = Literal["kohya", "peft", "diffusers", "animatediff"]

KOHYA: dict[tuple[Algorithm, str], str] = {
    ("lora", "down"): "lora_down.weight",
    ("lora", "up"): "lora_up.weight",
    ("lora", "mid"): "lora_mid.weight",
    ("lora", "up_bias"): "lora_up.bias",
    **{("loha", name): f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{("lokr", name): f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{("glora", name): f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")},
    ("ia3", "weight"): "weight",
    ("ia3", "on_input"): "on_input",
    **{(algorithm, "blocks"): "oft_blocks" for algorithm in ("oft", "boft")},
    **{(algorithm, "rescale"): "rescale" for algorithm in ("oft", "boft")},
    ("full", "diff"): "diff",
    ("norm", "diff"): "w_norm",
    ("norm", "bias"): "b_norm",
}
"""Tensor of LayerDelta -> how its key ends in kohya's and LyCORIS' files; any other change of a bias:
diff_b.
"""

ENDS: dict[str, tuple[Algorithm | None, str]] = {
    **{end: role for role, end in KOHYA.items() if end != "weight"},
    "lora_A.weight": ("lora", "down"),
    "lora_B.weight": ("lora", "up"),
    "lora_B.bias": ("lora", "up_bias"),
    "lora_A": ("lora", "down"),
    "lora_B": ("lora", "up"),
    "lora_E": ("lora", "AdaLoRA's weights of the ranks"),
    "ia3_l": ("ia3", "gain"),
    "lora.down.weight": ("lora", "down"),
    "lora.up.weight": ("lora", "up"),
    "lora.up.bias": ("lora", "up_bias"),
    "lora_linear_layer.down.weight": ("lora", "down"),
    "lora_linear_layer.up.weight": ("lora", "up"),
    "diff_b": (None, "bias"),
    "set_weight": ("whole", "weight"),
    "modules_to_save.weight": ("whole", "weight"),
    "modules_to_save.bias": (None, "whole_bias"),
    "scalar": (None, "scalar"),
    "alpha": (None, "alpha"),
    "lora.alpha": (None, "alpha"),
    "dora_scale": (None, "magnitude"),
    "lora_magnitude_vector": (None, "peft magnitude"),
    "lora_magnitude_vector.weight": (None, "peft magnitude"),
}
"""How keys end, in all layouts -> algorithm and tensor of LayerDelta."""

TEXT_OF_SDXL = 2048
"""Width of SDXL's two texts together, which its UNet takes in."""

BUNDLED = "bundle_emb."
"""How the keys of a textual inversion begin that a trainer put beside the LoRA."""

_ADAPTER = re.compile(
    r"^(.+\.(?:lora_[ABE]|lora_magnitude_vector|(?:hada|lokr)_[wt]\d(?:_[ab])?|ia3_l|modules_to_save))"
    r"(?:\..+?)??(\.weight|\.bias)?$"
)
_PROCESSOR = re.compile(r"_lora\.(down\.weight|up\.weight|up\.bias|alpha)$")


def parse(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, whole: bool = False
) -> LoraState:
    """The changes in a file's tensors; `metadata` are the strings of its header (peft keeps alpha there).

    `whole`: the file also has weights and biases in place of the model's own (peft's modules_to_save and
    bias). Alphas of layers that have no change, and words bundled with the LoRA, are left out. UnknownFile
    naming a key that is of no LoRA we know, Damaged for a layer that lacks a tensor.
    """
    layers: dict[tuple[str, str], dict[tuple[Algorithm | None, str], Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith(BUNDLED):
            continue
        layer, role = _read_key(key, whole, state)
        there = layers.setdefault(resolve_layer(layer), {})
        if role in there:
            raise Damaged(f"{key} and another key of the file are for the same layer: two LoRAs are mixed.")
        there[role] = tensor
    alphas, parts = alphas_in(metadata or {}), LoraState()
    changed = {place: t for place, t in layers.items() if t.keys() - {(None, "alpha")}}
    for (part, path), tensors in (changed or layers).items():
        if (gain := tensors.get(("ia3", "gain"))) is not None:
            inputs = gain.shape[0] == 1 < gain.numel() if gain.ndim == 2 else alphas.scales_inputs(part, path)
            tensors["ia3", "on_input"] = torch.tensor(inputs)
        parts.setdefault(part, {})[path] = factors_of(path, tensors, alphas.of(part, path))
    return parts


def write(parts: LoraState, layout: LoraLayout) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file; WrongKind naming a layer that the layout cannot express.

    The animatediff layout has no alpha: there it is multiplied into `up`.
    """
    if layout not in WRITERS:
        raise WrongKind(f"LoRAs have no layout {layout!r}: choose one of {', '.join(get_args(LoraLayout))}.")
    two, tensors = _has_two_texts(parts), dict[str, Tensor]()
    for part, layers in parts.items():
        for path, delta in layers.items():
            written = WRITERS[layout](part, path, delta, two)
            if any(resolve_layer(_read_key(key, state=written)[0]) != (part, path) for key in written):
                raise _inexpressible(layout, path, f"a layer of the {part} of this name")
            tensors |= written
    metadata = {"format": "pt"}
    return tensors, with_alphas(parts, metadata) if layout in ("peft", "diffusers") else metadata


def _read_key(
    key: str, whole: bool = False, state: Mapping[str, Any] | None = None
) -> tuple[str, tuple[Algorithm | None, str]]:
    """Name of the layer, and which tensor of it this is."""
    plain = _ADAPTER.sub(r"\1\2", key.replace(".processor.", "."))
    plain = _PROCESSOR.sub(r".lora.\1", plain)
    layer, _, last = plain.rpartition(".")
    if last == "weight" and f"{layer}.on_input" in (state or {}):
        return layer, ("ia3", "weight")
    end = next((end for end in _LONGEST if plain.endswith(f".{end}")), None)
    if end is not None:
        return plain.removesuffix(f".{end}"), ENDS[end]
    if whole and last in ("weight", "bias"):
        layer = layer.removesuffix(".base_layer")
        return layer, ("whole", "weight") if last == "weight" else (None, "whole_bias")
    raise UnknownFile(
        f"Among the keys is {key}, which is of no LoRA we know (looked for kohya, LyCORIS, peft, "
        "diffusers and AnimateDiff names of changes of weights)."
    )


_LONGEST = sorted(ENDS, key=len, reverse=True)


def _kohya(part: str, path: str, delta: LayerDelta, two: bool) -> dict[str, Tensor]:
    layer = kohya_layer(part, path, two)
    if delta.algorithm == "whole" or {"gain", "whole_bias"} & delta.tensors.keys():
        raise _inexpressible("kohya", path, "a weight or bias in place of the model's own")
    written = {
        f"{layer}.{KOHYA.get((delta.algorithm, name), 'diff_b')}": tensor
        for name, tensor in delta.tensors.items()
    }
    if delta.alpha == 0 and delta.rank is not None:
        raise _inexpressible("kohya", path, "an alpha of 0, which it reads as none")
    if delta.alpha is not None:
        written[f"{layer}.alpha"] = torch.tensor(delta.alpha)
    if delta.magnitude is not None:
        written[f"{layer}.dora_scale"] = delta.magnitude
    return written


def _peft(part: str, path: str, delta: LayerDelta, two: bool) -> dict[str, Tensor]:
    layer, magnitude = diffusers_layer(part, path), delta.magnitude
    written = _plain("peft", path, delta, f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
    if magnitude is None:
        return written
    up = delta.tensors["up"]
    if len(magnitude) != len(up):
        raise _inexpressible("peft", path, "a DoRA with a length for each input")
    shape = (-1,) if up.ndim == 2 else (1, -1, 1, 1)
    return written | {f"{layer}.lora_magnitude_vector": magnitude.reshape(shape)}


def _diffusers(part: str, path: str, delta: LayerDelta, two: bool) -> dict[str, Tensor]:
    _refuse_dora("diffusers", path, delta)
    middle = "lora_linear_layer" if part.startswith("text") else "lora"
    layer = f"{diffusers_layer(part, path)}.{middle}"
    return _plain("diffusers", path, delta, f"{layer}.down.weight", f"{layer}.up.weight")


def _animatediff(part: str, path: str, delta: LayerDelta, two: bool) -> dict[str, Tensor]:
    _refuse_dora("animatediff", path, delta)
    place, _, name = path.removesuffix(".0" if path.endswith(".to_out.0") else "").rpartition(".")
    if part not in ("unet", "motion") or not place:
        raise _inexpressible("animatediff", path, f"a layer of the {part} of this name")
    layer = f"{place}.processor.{name}_lora"
    written = _plain("animatediff", path, delta, f"{layer}.down.weight", f"{layer}.up.weight")
    if delta.scale() != 1.0:
        written[f"{layer}.up.weight"] = delta.tensors["up"] * delta.scale()
    return written


WRITERS: dict[str, Callable[[str, str, LayerDelta, bool], dict[str, Tensor]]] = {
    "kohya": _kohya,
    "peft": _peft,
    "diffusers": _diffusers,
    "animatediff": _animatediff,
}
"""Layout -> the tensors of one layer, by key."""


def _plain(layout: str, path: str, delta: LayerDelta, down: str, up: str) -> dict[str, Tensor]:
    more = delta.tensors.keys() - {"down", "up"}
    if delta.algorithm != "lora":
        raise _inexpressible(layout, path, f"a {delta.algorithm} change")
    if more:
        raise _inexpressible(layout, path, "a Tucker core" if "mid" in more else "a change of the bias")
    return {down: delta.tensors["down"], up: delta.tensors["up"]}


def _refuse_dora(layout: str, path: str, delta: LayerDelta) -> None:
    if delta.magnitude is not None:
        raise _inexpressible(layout, path, "a DoRA")


def _inexpressible(layout: str, path: str, what: str) -> WrongKind:
    other = "save it in the kohya layout" if layout != "kohya" else "use the file as it is"
    return WrongKind(f"The {layout} layout cannot hold {what} ({path}): {other}.")


def _has_two_texts(parts: LoraState) -> bool:
    """Whether it is for SDXL: by its second text encoder, or by the width of the text the UNet takes in."""
    downs = (
        f.tensors.get("down") for path, f in parts.get("unet", {}).items() if path.endswith("attn2.to_k")
    )
    wide = any(down is not None and down.shape[1] == TEXT_OF_SDXL for down in downs)
    return wide or "text_encoder_2" in parts
