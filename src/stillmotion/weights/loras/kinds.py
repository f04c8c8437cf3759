"""What names and shapes tell of a LoRA: its algorithm, layout, rank and base model. Knows no tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stillmotion.motion.spec import FAMILIES, MotionSpec
from stillmotion.weights.kinds import TEXT_WIDTHS

Shape = tuple[int, ...]

MARKS = re.compile(
    r"lora_(down|up|A|B|mid)|_lora\.(down|up)|lora\.(down|up)|lora_linear_layer|hada_w1|lokr_w1|dora_scale|oft_"
    r"|^(lora|lycoris)_\w+\.diff$"
)
"""Any of these in a name makes the file a LoRA (in the wide sense)."""

ATTENTION_PROCESSOR = re.compile(r"attn[12]\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")
"""The scheme of the v3 domain adapter and of diffusers before 0.22."""

MOTION = re.compile(
    r"(motion_modules|temporal_transformer|temporal_attentions)[._].*(lora|processor|hada_|lokr_|\.diff$)"
)

ALGORITHMS = (
    ("LoHa", "hada_w1"),
    ("LoKr", "lokr_w1"),
    ("OFT", "oft_"),
    ("DoRA", "dora_scale"),
    ("DoRA", "lora_magnitude_vector"),
    ("full difference", ".diff"),
)

LAYOUTS = (
    ("kohya", re.compile(r"lora_(unet|te\d?|prior)_|^lycoris_")),
    ("attention-processor", re.compile(r"\.processor\.\w+_lora\.(down|up)")),
    ("peft", re.compile(r"lora_[AB]\b")),
    ("diffusers", re.compile(r"lora\.(down|up)|lora_linear_layer|_lora\.(down|up)")),
)

_TEXT = re.compile(r"lora_te\d?_|lycoris_text_|(base_model\.model\.)?text_")
_CROSS = re.compile(r"attn2[._](processor\.)?to_(k|v)([._]|$)")
_DOWN = re.compile(r"lora_down|lora\.down|_lora\.down|lora_A|lora_linear_layer\.down|hada_w1_b")
_MOTION_DOWN = re.compile(r"down_blocks[._](\d+)[._](motion_modules|temporal_attentions)[._].*to_[qkv][._]")


def algorithm(shapes: Mapping[str, Shape]) -> str:
    """LoRA, LoCon (convolutions too), DoRA, LoHa, LoKr, OFT or full difference."""
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


def motion_family(shapes: Mapping[str, Shape]) -> MotionSpec | None:
    """The family of motion modules that a motion LoRA was made for, by its widths; None if unknown.

    v2 stands for all of Stable Diffusion's: they have the same widths, and only v2 had motion LoRAs.
    """
    found = ((_MOTION_DOWN.search(key), shape) for key, shape in shapes.items() if _DOWN.search(key))
    widths = {int(place[1]): shape[1] for place, shape in found if place and len(shape) == 2}
    rows = [FAMILIES[name] for name in ("sd15-v2", "sdxl-beta", "emoji")]
    fitting = [row for row in rows if widths and widths.items() <= dict(enumerate(row.channels)).items()]
    whole = (row for row in fitting if len(row.channels) == len(widths))
    return next(whole, next(iter(fitting), None))


def parts(shapes: Mapping[str, Shape]) -> str:
    """Which parts it changes, in words."""
    text = any(re.match(_TEXT, key) for key in shapes)
    unet = any(not re.match(_TEXT, key) for key in shapes)
    return " and ".join(name for name, there in (("UNet", unet), ("text encoder", text)) if there)
