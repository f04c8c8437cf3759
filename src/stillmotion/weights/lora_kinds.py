"""What names and shapes tell of a LoRA: its algorithm, layout, rank and base model. Knows no tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stillmotion.weights.kinds import TEXT_WIDTHS

Shape = tuple[int, ...]

MARKS = re.compile(
    r"lora_(down|up|A|B|mid)|_lora\.(down|up)|lora\.(down|up)|lora_linear_layer|hada_w1|lokr_w1|dora_scale|oft_"
)
"""Any of these in a name makes the file a LoRA (in the wide sense)."""

ATTENTION_PROCESSOR = re.compile(r"attn[12]\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")
"""The scheme of the v3 domain adapter and of diffusers before 0.22."""

MOTION = re.compile(r"(motion_modules|temporal_transformer|temporal_attentions)\b.*(lora|processor)")

ALGORITHMS = (
    ("LoHa", "hada_w1"),
    ("LoKr", "lokr_w1"),
    ("OFT", "oft_"),
    ("DoRA", "dora_scale"),
)

LAYOUTS = (
    ("kohya", re.compile(r"lora_(unet|te\d?|prior)_")),
    ("attention-processor", ATTENTION_PROCESSOR),
    ("peft", re.compile(r"lora_[AB]\b")),
    ("diffusers", re.compile(r"lora\.(down|up)|lora_linear_layer|_lora\.(down|up)")),
)

_CROSS = re.compile(r"attn2[._](processor\.)?to_(k|v)([._]|$)")
_DOWN = re.compile(r"lora_down|lora\.down|_lora\.down|lora_A|lora_linear_layer\.down")


def algorithm(shapes: Mapping[str, Shape]) -> str:
    """LoRA, LoCon (convolutions too), DoRA, LoHa, LoKr or OFT."""
    for name, mark in ALGORITHMS:
        if any(mark in key for key in shapes):
            return name
    convolutions = any(
        "lora_mid" in key or (len(s) == 4 and s[-1] > 1 and MARKS.search(key)) for key, s in shapes.items()
    )
    return "LoCon" if convolutions else "LoRA"


def layout(shapes: Mapping[str, Shape]) -> str:
    """Which naming scheme: kohya, attention-processor, peft or diffusers."""
    return next((name for name, mark in LAYOUTS if any(mark.search(key) for key in shapes)), "unknown scheme")


def rank(shapes: Mapping[str, Shape]) -> int | None:
    """The commonest first dimension of the down matrices; None where the algorithm has none."""
    ranks = [shape[0] for key, shape in shapes.items() if _DOWN.search(key) and len(shape) >= 2]
    return max(set(ranks), key=ranks.count) if ranks else None


def base(shapes: Mapping[str, Shape]) -> str | None:
    """The text-to-image family, by the width of the text that cross-attention takes in."""
    for key, shape in shapes.items():
        if _CROSS.search(key) and _DOWN.search(key) and len(shape) >= 2:
            return TEXT_WIDTHS.get(shape[1])
    if any(key.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for key in shapes):
        return "sdxl"
    return None


def parts(shapes: Mapping[str, Shape]) -> str:
    """Which parts it changes, in words."""
    text = any(re.match(r"lora_te\d?_|text_encoder", key) for key in shapes)
    unet = any(not re.match(r"lora_te\d?_|text_encoder", key) for key in shapes)
    return " and ".join(name for name, there in (("UNet", unet), ("text encoder", text)) if there)
