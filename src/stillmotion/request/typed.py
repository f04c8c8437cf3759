"""The fields of a Request as an editor shows them: what each may be given as. Held to Request by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import TypedDict

from stillmotion.request.conditions import ConditionData
from stillmotion.request.layer_weights import LayerWeights
from stillmotion.request.sections import GroupNormMode, LoraAlpha, SingleFrameMotion

WeightLike = LayerWeights | float | str | Mapping[str, float] | Mapping[int, float]
Files = Mapping[str, WeightLike] | Sequence[str] | str
"""Files and their weights: {"a.safetensors": 0.8}, or "a.safetensors=0.8" once or several times."""


class RequestFields(TypedDict, total=False):
    """Every field of a Request but the prompt."""

    negative_prompt: str
    clip_skip: int | None
    frames: int | None
    width: int | None
    height: int | None
    fps: float | None
    num_inference_steps: int | None
    guidance_scale: float | None
    scheduler: str | None
    seed: int | None
    motion_scale: float
    noise_alpha: float | None
    lora_alpha: LoraAlpha
    group_norm: GroupNormMode
    single_frame_motion: SingleFrameMotion
    motion: str | None
    base: str | None
    vae: str | None
    embeddings: Mapping[str, str] | Sequence[str] | str
    loras: Files
    motion_loras: Files
    dtype: str | None
    conditions: Sequence[ConditionData]
    controls: Sequence[ConditionData]
