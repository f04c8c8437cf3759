"""Headers of the files people have, written from docs/formats.md (names and shapes, no tensors)."""

from __future__ import annotations

from stillmotion.checkpoints.files import Header
from stillmotion.checkpoints.motion_keys import POSITIONS, layout_name
from stillmotion.motion.families import known_families

SD15 = "up_blocks.3.attentions.1.transformer_blocks.0."
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k."


def motion(
    family: str, layout: str = "animatediff", positions: int | None = 0, name: str = "mm.ckpt"
) -> Header:
    """A motion file of a family; `positions` 0 is the family's own length, None leaves the tables out."""
    spec = known_families()[family].config
    shapes = spec.shapes()
    length = spec.positions if positions == 0 else positions
    for prefix, (channels, _) in spec.modules().items() if length else ():
        for end in POSITIONS:
            shapes[f"{prefix}.temporal_transformer.{end}"] = (1, length, channels)
    named = {layout_name(key, layout): shape for key, shape in shapes.items()}
    if spec.conv_in:
        named |= {"conv_in.weight": (320, 9, 3, 3), "conv_in.bias": (320,)}
    return Header(named, name=name)


def whole_unet(family: str, positions: int | None = 0) -> Header:
    """What the original train.py saves: image layers and motion in one."""
    image = {
        "conv_in.weight": (320, 4, 3, 3),
        "conv_in.bias": (320,),
        "time_embedding.linear_1.weight": (1280, 320),
        "down_blocks.0.resnets.0.norm1.weight": (320,),
        "down_blocks.0.attentions.0.norm.weight": (320,),
        "up_blocks.0.upsamplers.0.conv.weight": (1280, 1280, 3, 3),
    }
    return Header({**image, **motion(family, positions=positions)}, name="checkpoint.ckpt")


def lora(**keys: tuple[int, ...]) -> Header:
    return Header({key.replace("__", "."): shape for key, shape in keys.items()}, name="style.safetensors")


def processor_lora(
    rank: int, place: str = SD15 + "attn1.processor.to_v_lora", name: str = "l.ckpt"
) -> Header:
    return Header({f"{place}.down.weight": (rank, 320), f"{place}.up.weight": (320, rank)}, name=name)


def checkpoint(text: int = 768, channels: int = 4, parts: tuple[str, ...] = ("vae", "text")) -> Header:
    unet = "model.diffusion_model."
    shapes = {
        f"{unet}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, text),
    }
    if "vae" in parts:
        shapes["first_stage_model.encoder.conv_in.weight"] = (128, 3, 3, 3)
        shapes["first_stage_model.decoder.conv_in.weight"] = (512, 4, 3, 3)
    if "text" in parts:
        place = "conditioner.embedders.0" if text == 2048 else "cond_stage_model"
        shapes[f"{place}.transformer.text_model.final_layer_norm.bias"] = (768,)
    return Header(shapes, name="toonyou_beta6.safetensors")


_SPARSE = {
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,),
    "controlnet_down_blocks.0.weight": (320, 320, 1, 1),
}
_TEMPORAL = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
_PEFT = f"unet.{SD15}attn2.to_k."
_MOTION_KOHYA = f"lora_unet_{_TEMPORAL.replace('.', '_')}attention_blocks_0_to_q."
_MOTION_LORA = _TEMPORAL + "attention_blocks.0.processor.to_q_lora"

KINDS: dict[str, tuple[Header, str, str | None, str | None]] = {
    "v1": (motion("sd15-v1"), "motion", "sd15-v1", "sd15"),
    "v2": (motion("sd15-v2"), "motion", "sd15-v2", "sd15"),
    "v3": (motion("sd15-v3"), "motion", "sd15-v3", "sd15"),
    "v3 saved by a newer trainer": (motion("sd15-v3", positions=None), "motion", "sd15-v3", "sd15"),
    "sdxl": (motion("sdxl-beta"), "motion", "sdxl-beta", "sdxl"),
    "hotshot": (motion("hotshot-xl", "hotshot"), "motion", "hotshot-xl", "sdxl"),
    "hotshot converted": (motion("hotshot-xl", "diffusers"), "motion", "hotshot-xl", "sdxl"),
    "animatelcm": (motion("animatelcm", positions=None), "motion", "animatelcm", "sd15"),
    "animatelcm adapter": (
        motion("animatelcm", "diffusers", 32, "AnimateLCM"),
        "motion",
        "animatelcm",
        "sd15",
    ),
    "lightning": (
        motion("lightning", name="lightning_2step_comfyui.safetensors"),
        "motion",
        "lightning",
        "sd15",
    ),
    "pia": (motion("pia"), "motion", "pia", "sd15"),
    "emoji": (motion("emoji"), "motion", "emoji", "emoji"),
    "diffusers v2": (motion("sd15-v2", "diffusers"), "motion", "sd15-v2", "sd15"),
    "whole unet v1": (whole_unet("sd15-v1"), "motion", "sd15-v1", "sd15"),
    "whole unet v2": (whole_unet("sd15-v2", None), "motion", "sd15-v2", "sd15"),
    "animatelcm i2v": (
        Header(
            {**motion("animatelcm", positions=None), "img_encoder.body.0.weight": (320, 4, 1, 1)}, name="i2v"
        ),
        "motion-i2v",
        "animatelcm-i2v",
        "sd15",
    ),
    "motion lora": (
        processor_lora(64, _MOTION_LORA, "v2_lora_PanLeft.ckpt"),
        "motion-lora",
        "sd15-v2",
        "sd15",
    ),
    "motion lora diffusers": (
        Header(
            {
                "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora.down.weight": (
                    64,
                    320,
                )
            },
            name="pan",
        ),
        "motion-lora",
        "sd15-v2",
        "sd15",
    ),
    "domain adapter": (processor_lora(128, name="v3_sd15_adapter.ckpt"), "domain-adapter", "sd15-v3", "sd15"),
    "domain adapter renamed": (processor_lora(128), "domain-adapter", "sd15-v3", "sd15"),
    "old diffusers lora": (processor_lora(4), "lora", "LoRA", None),
    "motion lora kohya": (
        lora(**{f"{_MOTION_KOHYA}lora_down.weight": (64, 320)}),
        "motion-lora",
        "sd15-v2",
        "sd15",
    ),
    "motion lora emoji": (
        Header({f"{_MOTION_LORA}.down.weight": (4, 128)}, name="pan.safetensors"),
        "motion-lora",
        "emoji",
        "emoji",
    ),
    "motion lora sdxl": (
        Header(
            {
                f"{_MOTION_LORA}.down.weight".replace(".0.", f".{i}.", 1): (4, c)
                for i, c in enumerate((320, 640, 1280))
            },
            name="pan.safetensors",
        ),
        "motion-lora",
        "sdxl-beta",
        "sdxl",
    ),
    "motion loha": (
        lora(**{f"{_MOTION_KOHYA}hada_w1_b": (4, 96)}),
        "motion-lora",
        "custom",
        "custom",
    ),
    "full difference": (
        lora(**{f"{KOHYA}diff": (320, 768)}),
        "lora",
        "full difference",
        None,
    ),
    "loha sd15": (lora(**{f"{KOHYA}hada_w1_b": (8, 768)}), "lora", "LoHa", "sd15"),
    "dora peft": (
        lora(
            **{
                f"unet.{SD15}attn2.to_k.lora_A.weight": (8, 768),
                f"unet.{SD15}attn2.to_k.lora_magnitude_vector": (320,),
            }
        ),
        "lora",
        "DoRA",
        "sd15",
    ),
    "kohya sd15": (
        lora(**{f"{KOHYA}lora_down.weight": (8, 768), f"{KOHYA}alpha": ()}),
        "lora",
        "LoRA",
        "sd15",
    ),
    "kohya sd2": (lora(**{f"{KOHYA}lora_down.weight": (8, 1024)}), "lora", "LoRA", "sd2"),
    "kohya sdxl": (lora(**{f"{KOHYA}lora_down.weight": (8, 2048)}), "lora", "LoRA", "sdxl"),
    "kohya text only": (lora(lora_te2_text_model__lora_down__weight=(8, 1280)), "lora", "LoRA", "sdxl"),
    "locon": (lora(**{"lora_unet_conv_in.lora_down.weight": (8, 4, 3, 3)}), "lora", "LoCon", None),
    "loha": (lora(**{f"{KOHYA}hada_w1_a": (320, 8)}), "lora", "LoHa", None),
    "lokr": (lora(**{f"{KOHYA}lokr_w1": (8, 8)}), "lora", "LoKr", None),
    "dora": (
        lora(**{f"{KOHYA}lora_down.weight": (8, 768), f"{KOHYA}dora_scale": (1, 768)}),
        "lora",
        "DoRA",
        "sd15",
    ),
    "peft": (lora(**{f"unet.{SD15}attn2.to_k.lora_A.weight": (8, 768)}), "lora", "LoRA", "sd15"),
    "diffusers lora": (lora(**{f"unet.{SD15}attn2.to_k.lora.down.weight": (8, 768)}), "lora", "LoRA", "sd15"),
    "sparsectrl rgb": (
        Header({**_SPARSE, "controlnet_cond_embedding.weight": (320, 5, 3, 3)}, name="rgb"),
        "sparsectrl",
        "rgb",
        "sd15",
    ),
    "sparsectrl scribble": (
        Header({**_SPARSE, "controlnet_cond_embedding.conv_in.weight": (16, 4, 3, 3)}, name="scribble"),
        "sparsectrl",
        "scribble",
        "sd15",
    ),
    "cameractrl": (
        Header(
            {
                "encoder.conv_in.weight": (1,),
                f"{_MOTION_LORA.removesuffix('to_q_lora')}qkv_merge.weight": (320, 320),
            },
            name="camera",
        ),
        "cameractrl",
        None,
        None,
    ),
    "sd15 checkpoint": (checkpoint(), "checkpoint", None, "sd15"),
    "sd2 checkpoint": (checkpoint(1024), "checkpoint", None, "sd2"),
    "sdxl checkpoint": (checkpoint(2048), "checkpoint", None, "sdxl"),
    "refiner": (checkpoint(1280), "checkpoint", None, "sdxl-refiner"),
    "inpainting": (checkpoint(768, 9), "checkpoint", "inpainting", "sd15"),
    "diffusers unet": (
        Header(
            {
                "down_blocks.0.resnets.0.norm1.weight": (320,),
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
            },
            name="u",
        ),
        "unet",
        None,
        "sdxl",
    ),
    "ldm controlnet": (
        Header(
            {"control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)}, name="c"
        ),
        "controlnet",
        None,
        "sd15",
    ),
    "diffusers controlnet": (
        Header(
            {
                "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            },
            name="c",
        ),
        "controlnet",
        None,
        "sd15",
    ),
    "ip-adapter": (
        Header(
            {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}, name="ip"
        ),
        "ip-adapter",
        None,
        None,
    ),
    "flux": (
        Header({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, name="flux"),
        "other-architecture",
        None,
        None,
    ),
    "vae ldm": (
        Header(
            {
                "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
                "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
            },
            name="vae",
        ),
        "vae",
        None,
        None,
    ),
    "embedding sd15": (Header({"emb_params": (4, 768)}, name="e"), "embedding", None, "sd15"),
    "embedding old": (Header({"string_to_param.*": (2, 768)}, name="e"), "embedding", None, "sd15"),
    "embedding sdxl": (
        Header({"clip_l": (2, 768), "clip_g": (2, 1280)}, name="e"),
        "embedding",
        None,
        "sdxl",
    ),
    "embedding diffusers": (Header({"<cat>": (768,)}, name="e"), "embedding", None, "sd15"),
    "text encoder": (
        Header({"text_model.embeddings.token_embedding.weight": (49408, 768)}, name="t"),
        "text-encoder",
        None,
        None,
    ),
}
"""Name -> header, and what it is: kind, family, base."""
