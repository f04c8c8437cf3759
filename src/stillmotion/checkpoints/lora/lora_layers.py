"""Where a layer of a LoRA file belongs: the part of the model and the canonical path in it. Pure functions.

    lora_unet_mid_block_attentions_0_proj_in         ("unet", "mid_block.attentions.0.proj_in")
    lora_te2_text_model_encoder_layers_0_mlp_fc1     ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1")
    mid_block.motion_modules.0....attn1.to_q         ("motion", "mid_block.motion_modules.0....to_q")

Paths are those of diffusers, text encoders always with `text_model.`, motion modules by their original names.
"""

from __future__ import annotations

import re

from stillmotion.checkpoints.lora.kohya_names import from_ldm, kohya_to_path, path_to_kohya
from stillmotion.checkpoints.motion_keys import MODULE, canonical_names, layout_name, layout_of
from stillmotion.errors import UnknownFile

FLAT = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
}
"""How layers begin in kohya's files and in those of LyCORIS."""

DOTTED = {
    "unet.": "unet",
    "lora_unet.": "unet",
    "lora_te.": "text_encoder",
    "lora_te1.": "text_encoder",
    "lora_te2.": "text_encoder_2",
    "diffusion_model.": "unet",
    "model.diffusion_model.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_1.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
"""How they begin in diffusers' files and OneTrainer's (lora_unet.); without any of these it is the UNet."""

_WRAPPED = re.compile(r"^(?:base_model\.(?:model\.)?|module\.|_orig_mod\.)+")
"""What peft, DataParallel and torch.compile put before everything, in any order."""

COMFY_TEXTS = {"l": "text_encoder.", "g": "text_encoder_2."}
"""Text encoders by the letter that ComfyUI has for them."""

_TEXT = ("text_model.", "text_projection")
_BARE_TEXT = ("encoder.layers.", "embeddings.", "final_layer_norm")


_COMFY_TEXT = re.compile(r"^(?:text_encoders\.)?clip_([lg])\.(?:transformer\.)?")
"""How text encoders begin in files of ComfyUI."""


def resolve_layer(layer: str) -> tuple[str, str]:
    """The part (unet, text_encoder, text_encoder_2, motion) and the canonical path of a layer of any file."""
    prefix = next((start for start in FLAT if layer.startswith(start)), None)
    if prefix is not None:
        part, path = FLAT[prefix], from_ldm(kohya_to_path(layer.removeprefix(prefix)))
    else:
        layer = _WRAPPED.sub("", layer)
        layer = _COMFY_TEXT.sub(lambda found: COMFY_TEXTS[found[1]], layer)
        start = next((start for start in DOTTED if layer.startswith(start)), None)
        part = DOTTED[start] if start else "unet"
        path = _WRAPPED.sub("", layer.removeprefix(start or ""))
        path = path if start and part != "unet" else from_ldm(path)
    if part == "unet" and path.startswith((*_TEXT, *_BARE_TEXT)):
        part = "text_encoder"
    return _canonical(part, path)


def kohya_layer(part: str, path: str, two_text_encoders: bool) -> str:
    """The name of a layer in kohya's scheme, the inverse of `resolve_layer`."""
    starts = {
        "unet": "lora_unet_",
        "motion": "lora_unet_",
        "text_encoder": "lora_te1_" if two_text_encoders else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    return starts[part] + path_to_kohya(path)


def diffusers_layer(part: str, path: str) -> str:
    """The name of a layer in diffusers' scheme, the inverse of `resolve_layer`."""
    if part == "motion":
        return "unet." + layout_name(f"{path}.weight", "diffusers").removesuffix(".weight")
    return f"{part}.{path}"


def _canonical(part: str, path: str) -> tuple[str, str]:
    if part.startswith("text"):
        path = re.sub(r"\.self_attn\.to_([qkv])$", r".self_attn.\1_proj", path)
        path = re.sub(r"\.self_attn\.to_out(\.0)*$", ".self_attn.out_proj", path)
        return part, path if path.startswith(_TEXT) else f"text_model.{path}"
    path = re.sub(r"\.to_out(\.0)*$", ".to_out.0", path)
    return ("motion", _motion_path(path)) if MODULE.fullmatch(path) else (part, path)


def _motion_path(path: str) -> str:
    names = canonical_names(f"{path}.weight", layout_of([path]) or "animatediff")
    if len(names) != 1:
        raise UnknownFile(f"Motion modules have no single layer {path} that a LoRA could change.")
    return names[0].removesuffix(".weight")
