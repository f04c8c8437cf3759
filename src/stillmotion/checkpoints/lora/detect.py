"""What names and shapes tell of a LoRA: its algorithm, layout, rank and base model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stillmotion.checkpoints.file_kinds import TEXT_WIDTHS
from stillmotion.motion.families import FAMILIES, MotionFamily, installed_families

Shape = tuple[int, ...]

MARKS = re.compile(
    r"lora_(down|up|A|B|mid)|_lora\.(down|up)|lora\.(down|up)|lora_linear_layer|hada_w1|lokr_w1|dora_scale|oft_"
    r"|\.(diff|diff_b|w_norm|b_norm|on_input|set_weight)$|\bia3_l\b|^(lora|lycoris)_\w+\.[ab][12]\.weight$"
    r"|lora_embedding_[AB]|boft_[Rs]|vera_lambda|hra_u|ln_tuning_layers|trainable_tokens_delta|lambda_layer"
    r"|fourierft_|vblora_|randlora_|miss_block|bone_block|ephemeral_\w+_sparse"
)
"""Any of these in a name makes the file a LoRA (in the wide sense)."""

ATTENTION_PROCESSOR = re.compile(r"attn[12]\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")
"""The scheme of the v3 domain adapter and of diffusers before 0.22."""

MOTION = re.compile(
    r"(motion_modules|temporal_transformer|temporal_attentions)[._].*(lora|processor|hada_|lokr_|oft_|\.(diff|diff_b|w_norm|b_norm|on_input|[ab][12]\.weight)$)"
)

UNAPPLIED = (
    ("LoRA of an embedding", "lora_embedding_"),
    ("OFT of peft", "oft_R"),
    ("OFT of peft", "oft_r."),
    ("BOFT of peft", "boft_"),
    ("OFT of an old LyCORIS", "oft_diag"),
    ("VeRA", "vera_lambda"),
    ("HRA", "hra_u"),
    ("tuning of norm layers by peft (LN tuning)", "ln_tuning_layers"),
    ("adapter with trained tokens", "trainable_tokens_delta"),
    ("T-LoRA", "lambda_layer"),
    ("FourierFT", "fourierft_"),
    ("VB-LoRA", "vblora_"),
    ("RandLoRA", "randlora_"),
    ("MiSS", "miss_block"),
    ("Bone", "bone_block"),
)
"""Algorithms that are known by name and not applied, and a mark in their keys."""

ALGORITHMS = (
    *UNAPPLIED,
    ("LoHa", "hada_w1"),
    ("LoKr", "lokr_w1"),
    ("OFT", "oft_"),
    ("GLoRA", ".a1.weight"),
    ("(IA)^3", ".on_input"),
    ("(IA)^3", "ia3_l"),
    ("DoRA", "dora_scale"),
    ("DoRA", "lora_magnitude_vector"),
)

WHOLE = (".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight")
"""How keys of differences end."""

OTHER_MODELS = (
    ("Flux", r"double_blocks[._]\d|single_blocks[._]\d|single_transformer_blocks[._]\d"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d"),
    ("Stable Cascade or Kandinsky", r"^lora_prior_"),
    ("a model with a T5 text encoder (Flux, Stable Diffusion 3)", r"^lora_te3_|^text_encoder_3\.|t5xxl"),
    (
        "a transformer model (Stable Diffusion 3, Flux or another)",
        r"^(base_model\.model\.)*(transformer\.|transformer_blocks\.\d|lora_transformer_)"
        r"|^(diffusion_model\.|lora_unet_|lycoris_)(blocks|layers|transformer_blocks)[._]\d",
    ),
)
"""Models that have no UNet of Stable Diffusion, and how the keys of their LoRAs look."""

LAYOUTS = (
    ("kohya", re.compile(r"lora_(unet|te\d?|prior)_|^lycoris_")),
    ("attention-processor", re.compile(r"\.processor\.\w+_lora\.(down|up)")),
    ("peft", re.compile(r"lora_[AB]\b|\bia3_l\b|^base_model\.")),
    ("ComfyUI", re.compile(r"^(model\.)?diffusion_model\.")),
    ("diffusers", re.compile(r"lora\.(down|up)|lora_linear_layer|_lora\.(down|up)")),
)

_TEXT = re.compile(r"lora_te\d?_|lycoris_text_|(base_model\.model\.)?text_")
_CROSS = re.compile(r"attn2[._](processor\.)?to_(k|v)([._]|$)")
_DOWN = re.compile(r"lora_down|lora\.down|_lora\.down|lora_A|lora_linear_layer\.down|hada_w1_b")
_MOTION_DOWN = re.compile(r"down_blocks[._](\d+)[._](motion_modules|temporal_attentions)[._].*to_[qkv][._]")


def algorithm(shapes: Mapping[str, Shape]) -> str:
    """LoRA, LoCon (convolutions too), DoRA, LoHa, LoKr, full difference or another by its name."""
    for name, mark in ALGORITHMS:
        if any(mark in key for key in shapes):
            stages = name == "OFT" and any(len(s) == 4 for key, s in shapes.items() if "oft_blocks" in key)
            return "BOFT" if stages else name
    if not any(_DOWN.search(key) for key in shapes) and any(key.endswith(WHOLE) for key in shapes):
        return "full difference"
    convolutions = any(
        "lora_mid" in key or (len(s) == 4 and s[-1] > 1 and MARKS.search(key)) for key, s in shapes.items()
    )
    return "LoCon" if convolutions else "LoRA"


def article(algorithm: str) -> str:
    """a or an, as the name of the algorithm is spoken."""
    return "an" if algorithm.startswith(("OFT", "(IA)", "HRA", "adapter")) else "a"


def layout(shapes: Mapping[str, Shape]) -> str:
    """Which naming scheme: kohya, attention-processor, peft or diffusers."""
    return next((name for name, mark in LAYOUTS if any(mark.search(key) for key in shapes)), "unknown scheme")


def rank(shapes: Mapping[str, Shape]) -> int | None:
    """The commonest first dimension of the down matrices; None where the algorithm has none."""
    ranks = [shape[0] for key, shape in shapes.items() if _DOWN.search(key) and len(shape) >= 2]
    return max(set(ranks), key=ranks.count) if ranks else None


def base(shapes: Mapping[str, Shape]) -> str | None:
    """The text-to-image family, by the width of the text that cross-attention takes in, or another model."""
    for name, pattern in OTHER_MODELS:
        if any(re.search(pattern, key) for key in shapes):
            return name
    for key, shape in shapes.items():
        if _CROSS.search(key) and _DOWN.search(key) and len(shape) >= 2:
            return TEXT_WIDTHS.get(shape[1])
    if any(key.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for key in shapes):
        return "sdxl"
    return None


def motion_family(shapes: Mapping[str, Shape]) -> MotionFamily | None:
    """The family of motion modules that a motion LoRA was made for, by its widths; None if unknown.

    v2 stands for all of Stable Diffusion's: they have the same widths, and only v2 had motion LoRAs.
    """
    found = ((_MOTION_DOWN.search(key), shape) for key, shape in shapes.items() if _DOWN.search(key))
    widths = {int(place[1]): shape[1] for place, shape in found if place and len(shape) == 2}
    rows = [FAMILIES["sd15-v2"], FAMILIES["sdxl-beta"], *installed_families().values()]
    fitting = [
        row for row in rows if widths and widths.items() <= dict(enumerate(row.config.channels)).items()
    ]
    whole = (row for row in fitting if len(row.config.channels) == len(widths))
    return next(whole, next(iter(fitting), None))


def parts(shapes: Mapping[str, Shape]) -> str:
    """Which parts it changes, in words."""
    text = any(re.match(_TEXT, key) for key in shapes)
    unet = any(not re.match(_TEXT, key) for key in shapes)
    return " and ".join(name for name, there in (("UNet", unet), ("text encoder", text)) if there)
