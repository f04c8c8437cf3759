"""What a file of weights is, from names and shapes alone: a table of rules, the first that fits wins.

Order matters: a SparseCtrl has motion modules and a ControlNet's embedding, a motion LoRA has motion modules
in its names, and everything of diffusers has down_blocks. Reads headers only; no tensor is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillmotion.checkpoints import embedding_names
from stillmotion.checkpoints.file_kinds import BASES, TEXT_WIDTHS, FileInfo, architecture_of, job_of
from stillmotion.checkpoints.files import Header, read_json
from stillmotion.checkpoints.hub import INSIDE
from stillmotion.checkpoints.lora import detect as lora_detect
from stillmotion.checkpoints.motion_detect import family_of, measure
from stillmotion.checkpoints.motion_keys import layout_of
from stillmotion.checkpoints.motion_layout import holds_whole_unet, rename
from stillmotion.checkpoints.training_metadata import training_facts
from stillmotion.motion.families import MotionFamily
from stillmotion.request.installed_models import DEFAULT_MODEL

_IMAGE_ENCODER = "img_encoder."


@dataclass(frozen=True)
class Rule:
    """A row of the table: which kind, when, and what more than its size can be told of it."""

    kind: str
    when: Callable[[Header], bool]
    describe: Callable[[Header, str], FileInfo] | None = None


def info_of(header: Header, name: str) -> FileInfo:
    """What the file with this header is; kind "unknown" if no rule fits. `name` is what the user calls it."""
    rule = next((rule for rule in RULES if rule.when(header)), None)
    if rule is None:
        return _unknown(header)
    if rule.describe is None:
        return FileInfo(rule.kind, header.name, details=_size(header))
    return rule.describe(header, name)


def _has(header: Header, *parts: str) -> bool:
    return any(part in key for key in header for part in parts)


def _starts(header: Header, *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in header)


def _match(header: Header, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(key) for key in header)


def _motion(header: Header, name: str) -> FileInfo:
    layout = layout_of(header) or "animatediff"
    shapes = {key: shape for key, shape in header.items() if not key.startswith(_IMAGE_ENCODER)}
    whole = holds_whole_unet(shapes)
    found = measure(rename(shapes, layout), layout, whole_unet=whole, hint=name)
    family, notes = family_of(found, header.config, header.metadata)
    if whole:
        notes.append(
            "It holds a whole UNet (as the original train.py saves it); only its motion modules are used."
        )
    if len(shapes) < len(header):
        return FileInfo(
            "motion-i2v", header.name, "animatelcm-i2v", layout, family.base, details=_size(header)
        )
    return FileInfo(
        "motion",
        header.name,
        family.name,
        layout,
        family.base,
        family,
        {
            "title": f"a motion module, family {family.name} ({layout} layout)",
            **_motion_details(family, header),
        },
        tuple(notes),
    )


def _motion_details(family: MotionFamily, header: Header) -> dict[str, str]:
    spec, sampling = family.config, family.sampling
    size = f", {sampling.width}x{sampling.height}" if sampling.width and sampling.height else ""
    return {
        "modules": f"{len(spec.modules())} ({spec.shape}), positions for {spec.positions} frames",
        **_size(header),
        "settings": (
            f"{sampling.frames} frames at {sampling.fps:g} fps{size}; {sampling.scheduler}, "
            f"{sampling.num_inference_steps} steps, guidance {sampling.guidance_scale:g}; {family.schedule}"
        ),
    }


def _size(header: Header) -> dict[str, str]:
    kinds = ", ".join(sorted(header.dtypes))
    return {"size": f"{header.parameters / 1e6:,.1f} M parameters ({kinds})"}


def _lora_details(header: Header) -> dict[str, str]:
    found = lora_detect.rank(header)
    return {"rank": str(found)} if found else {}


def _motion_lora(header: Header, name: str) -> FileInfo:
    director = "motion_director" in header.metadata.get("model_type", "")
    made_by = " made by MotionDirector" if director or _has(header, "ff.net") else ""
    algorithm, row = lora_detect.algorithm(header), lora_detect.motion_family(header)
    family, base = (row.name, row.base) if row else ("custom", "custom")
    what = "" if algorithm in ("LoRA", "LoCon") else f", {algorithm}"
    title = f"a motion LoRA{what}{made_by} (it changes a motion module)"
    details = {
        "title": title,
        "goes on": MOTION_LORA_GOES_ON.get(family, f"the motion of {family}"),
        **_lora_details(header),
    }
    return FileInfo("motion-lora", header.name, family, lora_detect.layout(header), base, details=details)


MOTION_LORA_GOES_ON = {
    "sd15-v2": "mm_sd_v15_v2 (the v2 motion module); on v3 without its changes of the middle",
    "sdxl-beta": "motion modules for Stable Diffusion XL",
    DEFAULT_MODEL: "the bundled motion",
    "custom": "motion modules of its own shape",
}
"""What a motion LoRA belongs on, by its family."""


def _is_domain_adapter(header: Header) -> bool:
    """Attention-processor LoRA of bare UNet names: its rank, name or config tells it from an old LoRA."""
    if not _match(header, lora_detect.ATTENTION_PROCESSOR) or _starts(header, "unet.", "text_encoder"):
        return False
    named = "adapter" in header.name.lower() or "animatediff_config" in header.extras
    return lora_detect.base(header) in ("sd15", None) and (named or lora_detect.rank(header) == 128)


def _domain_adapter(header: Header, name: str) -> FileInfo:
    """The v3 one, or one trained for a base of another shape (`stillmotion train domain-adapter`)."""
    details = _lora_details(header)
    if lora_detect.base(header) or not _has(header, "attn2.processor."):
        return FileInfo(
            "domain-adapter", header.name, "sd15-v3", "attention-processor", "sd15", details=details
        )
    details = {"title": "a domain adapter (a LoRA of the image layers) for a base of its shape", **details}
    return FileInfo("domain-adapter", header.name, None, "attention-processor", None, details=details)


def _lora(header: Header, name: str) -> FileInfo:
    algorithm, layout, base = (
        lora_detect.algorithm(header),
        lora_detect.layout(header),
        lora_detect.base(header),
    )
    details = {
        "title": f"{lora_detect.article(algorithm)} {algorithm} for the image model ({layout} layout)",
        "changes": lora_detect.parts(header),
        **_lora_details(header),
    }
    details |= {
        ("title inside" if label == "title" else label): text
        for label, text in training_facts(header.metadata).items()
    }
    notes = () if base else ("Its keys do not tell which base model it belongs to.",)
    return FileInfo("lora", header.name, algorithm, layout, base, details=details, notes=notes)


def _sparsectrl(header: Header, name: str) -> FileInfo:
    rgb = "controlnet_cond_embedding.weight" in header
    family = "rgb" if rgb else "scribble"
    title = f"a SparseCtrl encoder, {family} (it conditions a clip on a few given frames)"
    return FileInfo(
        "sparsectrl",
        header.name,
        family,
        layout_of(header),
        "sd15",
        details={"title": title, **_size(header)},
    )


def _checkpoint(header: Header, name: str) -> FileInfo:
    base = _text_base(header, ("model.diffusion_model.", "model_ema."))
    first = ("model.diffusion_model.input_blocks.0.0.weight", "model_ema.diffusion_modelinput_blocks00weight")
    last = ("model.diffusion_model.out.2.weight", "model_ema.diffusion_modelout2weight")
    channels = next((header[key][1] for key in first if len(header.get(key, ())) == 4), 0)
    drawn = next((header[key][0] for key in last if header.get(key)), 4)
    special = job_of(channels, drawn) if channels else None
    title = f"a text-to-image checkpoint in one file: {BASES[base]}{f', {special}' if special else ''}"
    missing = missing_parts(header)
    notes = [f"It has no {part}." for part in missing]
    if all(key in header for key in first):
        notes.append("It holds averaged weights (EMA) beside the plain ones; the plain ones are used.")
    return FileInfo(
        "checkpoint",
        header.name,
        special,
        "ldm",
        base,
        details={"title": title, **_size(header)},
        notes=tuple(notes),
    )


def missing_parts(header: Header) -> list[str]:
    """Which of UNet, VAE and text encoder a single-file checkpoint lacks, in words."""
    return [words for words, prefixes in CHECKPOINT_PARTS.items() if not _starts(header, *prefixes)]


CHECKPOINT_PARTS = {
    "UNet": ("model.diffusion_model.", "model_ema.diffusion_model"),
    "VAE": ("first_stage_model.", "vae."),
    "text encoder": ("cond_stage_model.", "conditioner.embedders."),
}
"""Parts of a single-file checkpoint and how their tensors begin."""


def _text_base(header: Header, prefix: str | tuple[str, ...] = "") -> str:
    """The base family by the width of the text its UNet takes in."""
    for key, shape in header.items():
        if shape and key.startswith(prefix) and key.endswith(("attn2.to_k.weight", "attn2to_kweight")):
            return TEXT_WIDTHS.get(shape[-1], "custom")
    return "custom"


def _unet(header: Header, name: str) -> FileInfo:
    layout = "ldm" if _starts(header, "input_blocks.") else "diffusers"
    return FileInfo("unet", header.name, None, layout, _text_base(header), details=_size(header))


def _other_architecture(header: Header, name: str) -> FileInfo:
    details = {"title": f"a model of another architecture ({architecture_of(header)})", **_size(header)}
    return FileInfo("other-architecture", header.name, details=details)


def _controlnet(header: Header, name: str) -> FileInfo:
    layout = "ldm" if _starts(header, "control_model.", "input_hint_block.") else "diffusers"
    return FileInfo("controlnet", header.name, None, layout, _text_base(header), details=_size(header))


def _embedding(header: Header, name: str) -> FileInfo:
    found = embedding_names.places(header)
    widths = {header[key][-1] for key in found}
    two = {"clip_g", "clip_l", "text_encoders_0", "text_encoders_1"} & found.keys()
    base = "sdxl" if two else TEXT_WIDTHS.get(max(widths), "custom")
    return FileInfo("embedding", header.name, None, None, base)


_LDM_UNET = re.compile(r"^input_blocks\.\d+\.")
_DIFFUSERS_UNET = re.compile(r"^down_blocks\.\d+\.resnets\.")

RULES = (
    Rule(
        "sparsectrl",
        lambda h: (
            layout_of(h) is not None and _starts(h, "controlnet_cond_embedding.", "controlnet_down_blocks.")
        ),
        _sparsectrl,
    ),
    Rule("cameractrl", lambda h: _has(h, "qkv_merge") and _has(h, "motion_modules.")),
    Rule("motion-lora", lambda h: _match(h, lora_detect.MOTION), _motion_lora),
    Rule("domain-adapter", _is_domain_adapter, _domain_adapter),
    Rule("lora", lambda h: _match(h, lora_detect.MARKS), _lora),
    Rule("motion", lambda h: layout_of(h) is not None, _motion),
    Rule(
        "checkpoint",
        lambda h: _has(h, "model.diffusion_model.input_blocks.", "model_ema.diffusion_modelinput_blocks"),
        _checkpoint,
    ),
    Rule(
        "controlnet",
        lambda h: _starts(
            h, "control_model.", "input_hint_block.", "controlnet_cond_embedding.", "controlnet_down_blocks."
        ),
        _controlnet,
    ),
    Rule("ip-adapter", lambda h: _starts(h, "image_proj.") and _starts(h, "ip_adapter.")),
    Rule("unet", lambda h: _match(h, _DIFFUSERS_UNET) or _match(h, _LDM_UNET), _unet),
    Rule("other-architecture", lambda h: architecture_of(h) is not None, _other_architecture),
    Rule(
        "vae",
        lambda h: _has(h, "encoder.conv_in.weight") and _has(h, "decoder.conv_in.weight"),
    ),
    Rule("embedding", lambda h: bool(embedding_names.places(h)), _embedding),
    Rule("text-encoder", lambda h: _has(h, "token_embedding.weight", "text_model.")),
)


def info_of_pipeline(folder: Path) -> FileInfo:
    """What a diffusers folder is, by its model_index.json, its UNet's config and our card."""
    index = read_json(folder / "model_index.json")
    card = read_json(folder / "stillmotion.json") if (folder / "stillmotion.json").is_file() else {}
    details = {"title": f"a model in a diffusers folder ({index.get('_class_name', 'of no named class')})"}
    base = card.get("family") if isinstance(card.get("family"), str) else None
    if base is None and (folder / "unet" / "config.json").is_file():
        config = read_json(folder / "unet" / "config.json")
        width = config.get("cross_attention_dim", 0)
        base = TEXT_WIDTHS.get(width, "custom") if isinstance(width, int) else "custom"
    inside = [part for part in INSIDE if (folder / part).is_dir()]
    if inside:
        details["motion"] = f"inside, in {inside[0]}/"
    if isinstance(card.get("defaults"), dict):
        details["settings"] = ", ".join(f"{name} {value}" for name, value in card["defaults"].items())
    return FileInfo("pipeline", folder.name, index.get("_class_name"), "diffusers", base, details=details)


def _unknown(header: Header) -> FileInfo:
    names = ", ".join(sorted(header)[:3]) or "nothing"
    details = {"tensors": f"{len(header)} ({names}{', ...' if len(header) > 3 else ''})", **_size(header)}
    return FileInfo("unknown", header.name, details=details)
