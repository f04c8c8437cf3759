"""What a trained LoRA says of itself in its header, in the keys that kohya's scripts and modelspec use.

Programs show these: the base, trigger words, steps and resolution. Nothing in it changes between two runs of
the same settings (no date), so that products stay the same bit for bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from stillmotion.training.config import DomainAdapterConfig, MotionLoraConfig
from stillmotion.training.config.images import LowRankConfig
from stillmotion.training.denoiser import Denoiser

ARCHITECTURES = {
    768: ("sd_v1", "stable-diffusion-v1"),
    1024: ("sd_v2", "stable-diffusion-v2-512"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
"""width of the text that a UNet sees -> its name in kohya's scripts and in modelspec"""
TAGS = 100
"""captions that are listed at most"""


def lora_metadata(
    config: LowRankConfig | DomainAdapterConfig | MotionLoraConfig,
    denoiser: Denoiser,
    captions: Iterable[str],
    step: int,
) -> dict[str, str]:
    """Strings for the header of a LoRA after `step` steps on images with these captions.

    Keys: https://github.com/kohya-ss/sd-scripts (ss_*) and https://github.com/Stability-AI/ModelSpec.
    """
    width = denoiser.unet.config.cross_attention_dim
    version, architecture = ARCHITECTURES.get(width, (f"custom-{width}", f"stable-diffusion-custom-{width}"))
    counted = Counter(captions)
    trigger = getattr(config, "instance_prompt", None) or getattr(config, "prompt", None)
    if trigger is None and len(counted) == 1:
        trigger = next(iter(counted))
    base = Path(config.base).name
    size = config.side
    found = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.alpha or config.rank,
        "ss_base_model_version": version,
        "ss_v2": version == "sd_v2",
        "ss_sd_model_name": base,
        "ss_output_name": config.output.name,
        "ss_resolution": f"({size}, {size})",
        "ss_steps": step,
        "ss_max_train_steps": config.max_train_steps,
        "ss_learning_rate": config.learning_rate,
        "ss_batch_size_per_device": config.batch_size,
        "ss_seed": config.seed,
        "ss_num_train_images": counted.total(),
        "ss_tag_frequency": json.dumps({config.output.name: dict(counted.most_common(TAGS))}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "stillmotion",
        "modelspec.title": config.output.name,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": "v" if denoiser.prediction_type == "v_prediction" else "epsilon",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"made with {base}",
    }
    return {name: str(value) for name, value in found.items() if value is not None}
