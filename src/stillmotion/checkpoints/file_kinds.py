"""The kinds of files people have, in words: what each is called and how it is used."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from stillmotion.motion.families import MotionFamily
from stillmotion.request.installed_models import DEFAULT_MODEL

BASES = {
    "sd15": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the Stable Diffusion XL refiner",
    DEFAULT_MODEL: f"the bundled {DEFAULT_MODEL} model",
    "custom": "a model of its own shape",
}
"""Families of text-to-image models in words."""

TEXT_WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Width of the text that a UNet's cross-attention takes in -> the family it belongs to."""


@dataclass(frozen=True)
class Kind:
    """What a kind of file is called and how it is used; `{name}` stands for the file."""

    title: str
    usage: str


KINDS: dict[str, Kind] = {
    "other-architecture": Kind(
        "an image or video model of another architecture",
        "none here: stillmotion animates Stable Diffusion 1.x, 2.x and XL",
    ),
    "motion": Kind(
        "a motion module",
        'stillmotion animate "PROMPT" --base CHECKPOINT --motion {name}',
    ),
    "motion-i2v": Kind(
        "the AnimateLCM image-to-video module (a motion module with an image encoder)",
        "it needs a first image, which stillmotion cannot give it yet; for text use AnimateLCM t2v",
    ),
    "motion-lora": Kind(
        "a motion LoRA (it changes a motion module)",
        'stillmotion animate "PROMPT" --base CHECKPOINT --motion MOTION --motion-lora {name}=0.8',
    ),
    "domain-adapter": Kind(
        "the v3 domain adapter (a LoRA of the image layers)",
        "give it as a LoRA beside the motion that was trained with it (v3_sd15_mm.ckpt): "
        "--motion MOTION --lora {name}=1.0",
    ),
    "lora": Kind("a LoRA for the image model", 'stillmotion animate "PROMPT" --lora {name}=0.8'),
    "sparsectrl": Kind(
        "a SparseCtrl encoder (it conditions a clip on a few given frames)",
        "it needs condition images; this version of stillmotion does not apply SparseCtrl yet",
    ),
    "cameractrl": Kind(
        "CameraCtrl (camera paths for a motion module)",
        "this version of stillmotion does not apply CameraCtrl yet",
    ),
    "checkpoint": Kind(
        "a text-to-image checkpoint in one file",
        'stillmotion animate "PROMPT" --base {name} --motion MOTION',
    ),
    "pipeline": Kind(
        "a text-to-image model in a diffusers folder",
        'stillmotion animate "PROMPT" --base {name} --motion MOTION',
    ),
    "unet": Kind(
        "a UNet alone, without text encoder and VAE",
        "it is a part of a model; give the whole checkpoint or the diffusers folder as `base=`",
    ),
    "controlnet": Kind(
        "a ControlNet",
        'stillmotion animate "PROMPT" --base CHECKPOINT --motion MOTION --control {name}:HINTS',
    ),
    "ip-adapter": Kind(
        "an IP-Adapter",
        "load it with pipe.load_ip_adapter(...) and attach motion: stillmotion.attach(pipe.unet, motion)",
    ),
    "embedding": Kind(
        "a textual inversion embedding (a word for prompts)",
        'stillmotion animate "PROMPT WITH ITS WORD" --embedding {name}',
    ),
    "vae": Kind("a VAE (it turns latents into images)", 'stillmotion animate "PROMPT" --vae {name}'),
    "text-encoder": Kind(
        "a text encoder alone",
        "it is a part of a model; give the whole checkpoint or the diffusers folder as `base=`",
    ),
    "unknown": Kind("not a file we know", ""),
}

LOOKED_FOR = (
    "motion modules (motion_modules., temporal_attentions.)",
    "LoRAs (lora_down, lora_up, lora_A, hada_w1, lokr_w1, processor.to_q_lora)",
    "SparseCtrl, ControlNet (controlnet_cond_embedding., controlnet_down_blocks., control_model.)",
    "text-to-image checkpoints (model.diffusion_model., first_stage_model., cond_stage_model., conditioner.)",
    "diffusers parts (down_blocks.0.resnets., encoder.conv_in., text_model.)",
    "IP-Adapters (image_proj., ip_adapter.) and textual inversion (emb_params, string_to_param, clip_l)",
)
"""What `identify` has looked for in a file that it does not know."""


@dataclass(frozen=True)
class FileInfo:
    """What a file is. `details` are short (name, value) pairs; `notes` say what is not certain."""

    kind: str
    name: str = ""
    family: str | None = None
    layout: str | None = None
    base: str | None = None
    spec: MotionFamily | None = None
    details: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    """how the user names it on the command line; `name` if it is not known"""

    @property
    def known(self) -> bool:
        return self.kind != "unknown"

    @property
    def title(self) -> str:
        """What it is, in words, with family and algorithm: "an AnimateDiff motion module (sd15-v2)"."""
        return self.details.get("title", KINDS[self.kind].title)

    @property
    def usage(self) -> str:
        if self.kind == "checkpoint" and self.family:
            return "it takes more than noise, which stillmotion cannot give it yet; use the plain checkpoint"
        usage = KINDS[self.kind].usage.format(name=shlex.quote(self.source or self.name))
        if self.kind == "motion-lora" and self.base == DEFAULT_MODEL:  # the default base and motion
            usage = usage.replace(" --base CHECKPOINT --motion MOTION", "")
        return usage.removesuffix(" --motion MOTION") if "motion" in self.details else usage

    def describe(self) -> list[str]:
        """What a person wants to know, a few lines: what it is, what it fits, its settings, how to use it."""
        lines = [f"{self.name}: {self.title}"]
        rows = dict(self.details)
        rows.pop("title", None)
        if self.base:
            label = "family" if self.kind in ("checkpoint", "pipeline") else "fits"
            rows = {label: BASES.get(self.base, self.base), **rows}
        if self.usage:
            rows["use"] = self.usage
        lines += [f"  {label:<10} {text}" for label, text in rows.items()]
        lines += [f"  {'note':<10} {note}" for note in self.notes]
        if not self.known:
            lines += ["  looked for:", *(f"    {thing}" for thing in LOOKED_FOR)]
        return lines


JOBS = {5: "depth-to-image", 7: "upscaling", 8: "instruct-pix2pix", 9: "inpainting"}
"""What a UNet is for that takes more channels than it draws: an image, a mask or depth besides the noise."""


def job_of(taken: int, drawn: int) -> str | None:
    """What else than text-to-image a UNet of so many channels is for; None for a plain one."""
    return JOBS.get(taken, f"a job that takes {taken} channels") if taken != drawn else None


ARCHITECTURES = {
    "Flux": ("double_blocks.", "single_transformer_blocks."),
    "Stable Diffusion 3": ("joint_blocks.",),
    "PixArt": ("adaln_single.", "t_block.1."),
    "Stable Cascade": ("clip_txt_mapper.", "clip_txt_pooled_mapper."),
    "a Diffusion Transformer (as Stable Diffusion 3)": ("context_embedder.",),
}
"""What has no UNet, and how one of its tensors begins (behind any prefix of the file)."""


def architecture_of(names: Iterable[str]) -> str | None:
    """The model without a UNet that tensors of these names are of."""
    bare = {name.removeprefix("model.diffusion_model.").removeprefix("transformer.") for name in names}
    return next(
        (kind for kind, marks in ARCHITECTURES.items() if any(n.startswith(marks) for n in bare)), None
    )
