"""Good files of every kind that stillmotion reads, tiny, made anew: what the fuzzer changes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from loras import random_parts
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import SIZE, tiny_lora, tiny_motion, tiny_pipeline

from stillmotion.checkpoints.convert import convert
from stillmotion.checkpoints.lora.layouts import write
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.request import Request
from stillmotion.sampling.latents import Latents
from stillmotion.video import Clip

REQUEST: dict[str, Any] = {
    "prompt": "a rocket",
    "negative_prompt": "blurry",
    "seed": 7,
    "frames": 4,
    "width": SIZE,
    "height": SIZE,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "fps": 8.0,
    "scheduler": "ddim",
    "noise_alpha": 0.0,
    "base": "nowhere/base",
    "motion": "none",
    "loras": {"a.safetensors": 0.5, "b.safetensors": {"unet": 0.8, "down": 1, "0": 0, "15": 1}},
    "embeddings": {"c.pt": "word"},
    "dtype": "float32",
}

CARD = {
    "name": "tiny",
    "family": "emoji",
    "defaults": {"frames": 3, "num_inference_steps": 2, "width": SIZE, "scheduler": "ddim"},
    "schedule": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "concepts": "concepts.json",
}

CONCEPTS = {
    "styles": ["3d render"],
    "concepts": [{"name": "rocket", "keywords": ["space", "launch"], "group": "travel", "animated": True}],
}

SHARED = {"output": "run", "base": "emoji", "learning_rate": 1e-4, "max_train_steps": 10, "seed": 3}
DENOISE = {**SHARED, "resolution": 64, "validation_prompts": ["a rocket"], "beta_schedule": "linear"}
CONFIGS: dict[str, dict[str, Any]] = {
    "motion": {**DENOISE, "videos": "clips", "frames": 8, "stride": 2, "positions": 24, "mid_block": True},
    "lora": {**DENOISE, "images": "images", "rank": 4, "alpha": 2.0, "dropout": 0.1, "conv": True},
    "dreambooth": {**DENOISE, "instance_images": "dog", "instance_prompt": "sks dog", "class_prompt": "dog"},
    "textual-inversion": {**DENOISE, "images": "dog", "token": "<dog>", "initializer_word": "dog"},
    "domain-adapter": {**DENOISE, "videos": "clips", "rank": 8, "alpha": 4},
    "motion-lora": {**DENOISE, "videos": "clips", "camera": "zoom-in", "camera_amount": 0.2},
}
"""Kind of training -> what its YAML says."""


def make(folder: Path) -> Path:
    """All seeds below `folder`, each target's files in a folder of its own."""
    _bases(folder)
    _motions(folder / "motion")
    _loras(folder / "lora")
    _embeddings(folder / "embedding")
    _others(folder / "identify")
    _clips(folder)
    _data(folder)
    _run(folder / "run")
    (folder / "request").mkdir()
    (folder / "request" / "request.json").write_text(Request.parse(**REQUEST).to_json())
    (folder / "weights").mkdir()
    (folder / "weights" / "parts.txt").write_text("unet:0.8,text:0.5,down:1")
    (folder / "weights" / "frames.txt").write_text("0:0,8:0.5,15:1")
    (folder / "config").mkdir()
    for kind, fields in CONFIGS.items():
        lines = [f"{name}: {json.dumps(value)}\n" for name, value in fields.items()]
        (folder / "config" / f"{kind}.yaml").write_text("# a run\n" + "".join(lines))
    return folder


def _bases(folder: Path) -> None:
    base = folder / "base" / "base"
    tiny_pipeline(folder=base)
    (base / "stillmotion.json").write_text(json.dumps(CARD))
    (base / "concepts.json").write_text(json.dumps(CONCEPTS))
    (folder / "single").mkdir()
    file = convert(base, folder / "single" / "own.safetensors")
    state = load_file(file)
    torch.save({"state_dict": state, "epoch": 3, "global_step": 10}, folder / "single" / "model.ckpt")
    save_file({name.removeprefix("first_stage_model."): value for name, value in state.items()
               if name.startswith("first_stage_model.")}, folder / "single" / "vae.safetensors")  # fmt: skip
    (folder / "configs").mkdir()
    for config in base.rglob("*.json"):
        place = folder / "single" / "configs" / config.relative_to(base)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(config, place)
    for text in base.rglob("*.txt"):
        shutil.copy(text, folder / "single" / "configs" / text.relative_to(base))


def _motions(folder: Path) -> None:
    folder.mkdir()
    net = tiny_motion(channels=(8,), layers=(1,), heads=(2,), norm_groups=2, positions=8)
    model = MotionModel.from_state(net.spec, net.state_dict())
    model.save(folder / "own.safetensors")
    model.save(folder / "adapter")
    state = load_file(folder / "own.safetensors")
    save_file(state, folder / "plain.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, folder / "motion.ckpt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)


def _loras(folder: Path) -> None:
    folder.mkdir()
    pipeline = tiny_pipeline()
    state = {name: tensor for name, tensor in tiny_lora().items() if "to_q" in name or "to_v" in name}
    save_file(state, folder / "peft.safetensors", {"format": "pt"})
    torch.save(state, folder / "lora.pt")
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    for algorithm in ("lora", "loha", "lokr"):
        parts = random_parts(pipeline, alpha=lambda path: 1.0, algorithm=algorithm)
        few = {part: dict(list(layers.items())[:2]) for part, layers in parts.items()}
        facts = {"ss_network_dim": "2", "ss_tag_frequency": '{"1_x": {"sks": 3}}', "modelspec.title": "x"}
        save_file(write(few, "kohya")[0], folder / f"{algorithm}.safetensors", facts)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    pair = {f"{layer}.lora_down.weight": torch.ones(2, 32), f"{layer}.lora_up.weight": torch.ones(32, 2)}
    more = {f"{layer}.alpha": torch.tensor(1.0), f"{layer}.diff_b": torch.ones(32)}
    dora = {f"{layer}.dora_scale": torch.ones(32, 1)}
    norm = layer.replace("attn1_to_out_0", "norm1")
    more |= {f"{norm}.w_norm": torch.ones(32), f"{norm}.b_norm": torch.ones(32)}
    save_file({**pair, **more, "bundle_emb.word.clip_l": torch.ones(1, 32)}, folder / "more.safetensors")
    save_file({**pair, **dora}, folder / "dora.safetensors")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["to_q"], "use_rslora": False}
    config |= {"use_dora": False, "alpha_pattern": {"attn1.to_q": 8}, "rank_pattern": {}, "bias": "none"}
    for name, kind in {"folder": config, "loha": {"peft_type": "LOHA", "r": 2, "alpha": 4}}.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(json.dumps(kind))
        ends = {"lora_A.weight": (2, 32), "lora_B.weight": (32, 2)}
        if name == "loha":
            ends = {
                f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in (("a", (32, 2)), ("b", (2, 32)))
            }
        save_file({f"base_model.model.{path}.{end}": torch.ones(shape) for end, shape in ends.items()},
                  folder / name / "adapter_model.safetensors")  # fmt: skip


def _embeddings(folder: Path) -> None:
    folder.mkdir()
    save_file({"emb_params": torch.ones(2, 32)}, folder / "webui.safetensors")
    save_file({"<cat>": torch.ones(1, 32)}, folder / "diffusers.safetensors")
    save_file({"clip_l": torch.ones(2, 32)}, folder / "clip.safetensors")
    param = {"string_to_param": {"*": torch.ones(2, 32)}, "string_to_token": {"*": 265}, "name": "wurd"}
    torch.save({**param, "step": 10, "sd_checkpoint": None}, folder / "webui.pt")
    torch.save({"<cat>": torch.ones(1, 32)}, folder / "learned_embeds.bin")


def _others(folder: Path) -> None:
    """Kinds that are known by name only."""
    folder.mkdir()
    text = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    kinds: dict[str, dict[str, tuple[int, ...]]] = {
        "controlnet": {"controlnet_cond_embedding.conv_in.weight": (4, 3, 3, 3), text: (8, 768)},
        "unet": {"down_blocks.0.resnets.0.norm1.weight": (8,), text: (8, 768)},
        "checkpoint": {
            "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
            "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        },
        "ip-adapter": {"image_proj.proj.weight": (8, 8), "ip_adapter.1.to_k_ip.weight": (8, 8)},
        "motion-lora": {
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0."
            f"processor.to_q_lora.{side}.weight": shape
            for side, shape in (("down", (2, 8)), ("up", (8, 2)))
        },
        "two-embeddings": {"clip_l": (2, 8), "clip_g": (2, 12)},
        "flux": {"double_blocks.0.img_attn.proj.weight": (8, 8)},
    }
    for name, shapes in kinds.items():
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / f"{name}.safetensors")


def _clips(folder: Path) -> None:
    clips = folder / "clip"
    clips.mkdir()
    request = Request.parse(**REQUEST)
    frames = np.random.default_rng(0).integers(0, 255, (4, SIZE, SIZE, 3), dtype=np.uint8)
    for end in ("gif", "webp", "apng", "mp4", "webm"):
        Clip(frames, 8.0, request).save(clips / f"clip.{end}")
    Clip(frames[:1], 8.0, request).save(clips / "still.png")
    Clip(frames, 8.0, request).save(clips / "folder")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(frames[0])
    for end in ("jpg", "tif", "bmp", "webp", "avif"):
        image.save(clips / f"photo.{end}", **({} if end == "bmp" else {"exif": exif}))
    latents = folder / "latents"
    latents.mkdir()
    Latents(torch.randn(4, 4, 8, 8), request).save(latents / "x.gif.latents.safetensors")
    tags = folder / "tag"
    tags.mkdir()
    facts = {"stillmotion": 1, "frames": 4, "fps": 8.0, "width": SIZE, "height": SIZE, "request": REQUEST}
    (tags / "tag.json").write_text(json.dumps(facts))


def _data(folder: Path) -> None:
    data = folder / "data"
    (data / "3_red cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(data / f"{number}.png")
    Image.new("RGB", (8, 8)).save(data / "3_red cat" / "4.jpg")
    (data / "0.txt").write_text("a rocket\na red rocket\n", "utf-8")
    (data / "1.json").write_text(json.dumps({"caption": "a café", "tags": ["x"]}))
    (data / "2.caption").write_text("a dog\n", "utf-16")
    rows = [{"file_name": "0.png", "text": "a rocket"}, {"file": "1.png", "caption": ["a", "b"]}]
    (data / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (data / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (data / "list.csv").write_text('file_name,text\n0.png,a rocket\n1.png,"a, b"\n')
    (data / "webvid.csv").write_text("videoid,name,page_dir\n0,a rocket,.\n1,a cat,.\n")


def _run(folder: Path) -> None:
    shapes = {"a.weight": [2, 3], "b": []}
    for step in (5, 10):
        place = folder / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        vectors = {name: torch.ones(7) for name in ("weights", "ema", "exp_avg", "exp_avg_sq")}
        save_file(vectors, place / "state.safetensors")
        facts = {"step": step, "settings": {"learning_rate": 1e-4, "base": "emoji"}, "shapes": shapes}
        (place / "trainer.json").write_text(json.dumps(facts))
    (folder / "loss.csv").write_text("step,loss,learning_rate,grad_norm\n1,0.5,1e-4,1.0\n2,0.4,1e-4,0.9\n")
    image = folder / "item.png"
    Image.new("RGB", (8, 8)).save(image)
