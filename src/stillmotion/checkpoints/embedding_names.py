"""Names of textual inversions in files: which text encoder each tensor is for. Knows shapes, no tensors.

string_to_param.*    .pt of the original code and the WebUI; in place of * any placeholder
emb_params           .safetensors of the WebUI and kohya
<word>               .bin and .safetensors of diffusers: the only tensor of the file
clip_l, clip_g                        both text encoders of SDXL
text_encoders_0, text_encoders_1      the same, from pivotal tuning
"""

from __future__ import annotations

from collections.abc import Mapping

from stillmotion.checkpoints.file_kinds import TEXT_WIDTHS

ORIGINAL = "string_to_param."
PLACES = {
    "emb_params": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
"""Names that are no word -> the text encoder the vectors are for."""

ONE = ORIGINAL + "*"
"""The usual placeholder; bundled in LoRAs too."""

MOST_VECTORS = 77
"""Of a word in a file that says nothing else of itself: what a prompt has room for."""


def places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Name -> text encoder for the vectors (w,) or (n, w) in a file; empty if it is no textual inversion.

    What stands beside them (the number of the token, the step of training) is left out.
    """
    vectors = {name: shape for name, shape in shapes.items() if len(shape) in (1, 2) and all(shape)}
    known = {name: PLACES.get(name, "text_encoder") for name in vectors if name in PLACES or _original(name)}
    if known or len(vectors) != 1:
        return known
    [(name, shape)] = vectors.items()
    plain = shape[-1] in TEXT_WIDTHS or (len(shape) == 2 and shape[0] <= MOST_VECTORS)
    counters = all(not shapes[other] for other in shapes.keys() - {name})
    return {name: "text_encoder"} if plain and counters and "." not in name else {}


def word_in(name: str) -> str:
    """The word that the name of a tensor is, or has in it; "" if it is none."""
    if _original(name):
        return name.removeprefix(ORIGINAL).strip("*")
    return "" if name in PLACES else name


def _original(name: str) -> bool:
    return name.startswith(ORIGINAL)
