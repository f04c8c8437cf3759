"""Step 7: the trained parts as one Stable Diffusion folder in fp16, as diffusers (and stillmotion) load
it.
"""

from __future__ import annotations

import argparse
import json

import torch
from base import RUNS, SCHEDULER, Model
from concepts import STYLES, animations
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from places import BUNDLED
from stages import ordered
from transformers import CLIPTokenizer

from stillmotion import MotionModel
from stillmotion.motion.families import installed_families

DEFAULTS = {
    "width": 128,
    "height": 128,
    "frames": 16,
    "fps": 8,
    "num_inference_steps": 15,
    "guidance_scale": 3.0,
    "scheduler": "ddim",
}


def averaged_model() -> Model:
    """The moving average of the last state of base training."""
    model, saved = Model(), torch.load(RUNS / "base" / "state.pt", weights_only=True)
    model.load_state_dict({**saved["model"], **saved["average"]})
    return model.eval()


def pipeline(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The base model as a stock diffusers pipeline."""
    model, vae = averaged_model(), AutoencoderKL.from_pretrained(RUNS / "vae")
    model.unet.set_default_attn_processor()
    return StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=model.text.to(dtype),
        tokenizer=CLIPTokenizer.from_pretrained(RUNS / "text"),
        unet=model.unet.to(dtype),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def knowledge(count: int) -> dict:
    """What the model was shown, for `stillmotion concepts` and for hints."""
    moving = animations()
    rows = [
        {"name": c.name, "keywords": list(c.keywords), "group": c.group, "animated": c.code in moving}
        for c in ordered()[:count]
    ]
    return {"styles": list(STYLES.values()), "concepts": rows}


def add_motion() -> None:
    """The trained motion module beside the base, in fp16, under the family's name."""
    net = MotionModel.load(RUNS / "motion" / "motion")
    net.family = installed_families()["emoji"].updated(positions=net.spec.positions)
    net.to(torch.float16).save(BUNDLED / "motion")
    trained = json.loads((RUNS / "motion" / "motion" / "stillmotion.json").read_text(encoding="utf-8"))
    about = {"name": "emoji", "schedule": trained["schedule"]}
    (BUNDLED / "motion" / "stillmotion.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def add_base(count: int) -> None:
    """Base model, card and concepts."""
    pipeline(torch.float16).save_pretrained(BUNDLED, safe_serialization=True)
    for file in BUNDLED.glob("*/config.json"):  # diffusers notes the folder a part was loaded from
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if "dtype" in config:  # without torch_dtype transformers takes this one, diffusers float32
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    about = {"name": "emoji", "family": "emoji", "defaults": DEFAULTS, "concepts": "concepts.json"}
    (BUNDLED / "stillmotion.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(knowledge(count), ensure_ascii=False, indent=1)
    (BUNDLED / "concepts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    parser.add_argument("--motion", action="store_true", help="only the motion module, after its training")
    options = parser.parse_args()
    add_motion() if options.motion else add_base(options.concepts)
