"""Layer names with underscores for dots, as kohya's files have them, and the names of SDXL's authors.

    down_blocks_0_attentions_1_proj_in   <->  down_blocks.0.attentions.1.proj_in
    input_blocks.4.1.proj_in              ->  down_blocks.1.attentions.0.proj_in

What is a dot and what an underscore follows from the words that models have underscores in. Pure functions.
"""

from __future__ import annotations

import re

from stillmotion.checkpoints.ldm.keys import RESNET, UNET_PARTS

_WORDS = """
    down_blocks mid_block up_blocks input_blocks middle_block output_blocks transformer_blocks
    in_layers out_layers emb_layers skip_connection time_embed label_emb
    conv_in conv_out conv_norm_out conv_shortcut time_emb_proj linear_1 linear_2 cond_proj
    time_embedding add_embedding class_embedding encoder_hid_proj transformer_in
    proj_in proj_out to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out
    motion_modules temporal_transformer temporal_attentions attention_blocks pos_encoder pos_embed ff_norm
    text_model text_projection token_embedding position_embedding self_attn q_proj k_proj v_proj out_proj
    layer_norm1 layer_norm2 final_layer_norm
"""
WORDS = frozenset(_WORDS.split())
"""Words of the models we know that have underscores in them."""

MOST = max(word.count("_") for word in WORDS) + 1
LAYERS = 2
"""Resnets in each block of the models whose authors' names are in use (SD 1.x, SD 2.x, SDXL)."""

_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_FROM_LDM = {ldm: ours for ours, ldm in UNET_PARTS.items()}
_FROM_RESNET = {ldm: ours for ours, ldm in RESNET.items()}


def path_to_kohya(path: str) -> str:
    """down_blocks.0.attentions.1 -> down_blocks_0_attentions_1"""
    return path.replace(".", "_")


def kohya_to_path(flat: str) -> str:
    """down_blocks_0_attentions_1 -> down_blocks.0.attentions.1; the longest known word counts."""
    pieces, path = flat.split("_"), []
    while pieces:
        lengths = (n for n in range(min(MOST, len(pieces)), 1, -1) if "_".join(pieces[:n]) in WORDS)
        length = next(lengths, 1)
        path.append("_".join(pieces[:length]))
        pieces = pieces[length:]
    return ".".join(path)


def from_ldm(path: str) -> str:
    """The diffusers path of a UNet's layer that has its authors' name; other paths stay."""
    if found := _BLOCK.fullmatch(path):
        return _from_block(found[1], int(found[2]), int(found[3]), found[4])
    part = next((ldm for ldm in _FROM_LDM if f"{path}.".startswith(f"{ldm}.")), None)
    if part is None:
        return path
    rest = path.removeprefix(part).removeprefix(".")
    return ".".join(filter(None, (_FROM_LDM[part], _FROM_RESNET.get(rest, rest))))


def _from_block(way: str, number: int, place: int, rest: str) -> str:
    """The authors number the layers through all blocks; a sampler is one more layer going down, not up."""
    block, layer = divmod(number - (way == "input"), LAYERS + 1)
    if way == "input" and rest == "op":
        return f"down_blocks.{block}.downsamplers.0.conv"
    if way == "output" and rest == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    kind = ("resnets", "attentions")[min(place, 1)]
    blocks = {"input": "down_blocks", "output": "up_blocks"}[way]
    return f"{blocks}.{block}.{kind}.{layer}.{_FROM_RESNET.get(rest, rest)}"
