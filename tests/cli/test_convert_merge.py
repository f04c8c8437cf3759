"""`stillmotion convert` and `stillmotion merge`: what they write and what they say."""

from __future__ import annotations

from pathlib import Path

import torch
from loras import motion_parts, random_parts
from tiny import tiny_motion, tiny_pipeline

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel


def test_a_folder_becomes_one_file_and_back(say, sd15_folder: Path) -> None:
    code, out, _ = say("convert", sd15_folder, "it.safetensors", "--dtype", "fp16")
    assert code == 0 and out.startswith("it.safetensors: a text-to-image checkpoint in one file")
    assert load_base("it.safetensors", torch.float16).unet.dtype == torch.float16
    assert say("convert", "it.safetensors", "back")[0] == 0
    code, _, err = say("convert", sd15_folder, "back")
    assert code == 2 and "--force" in err
    assert say("convert", sd15_folder, "back", "--force")[0] == 0


def test_what_cannot_be_converted_is_one_sentence(say, sd15_folder: Path) -> None:
    code, _, err = say("convert", sd15_folder, "x.safetensors", "--layout", "peft")
    assert code == 2 and "has no peft layout" in err and err.count("\n") == 1
    code, _, err = say("convert", sd15_folder, "x.safetensors", "--dtype", "fp12")
    assert code == 2 and "dtype is 'fp12'" in err
    for name in ("x.gguf", "x.onnx", "x.SAFETENSORS", "x.safetensor", "x.ckpt", "x.zip"):
        for command in (("convert", sd15_folder, name), ("merge", sd15_folder, name, "--with", "x=0.5")):
            code, _, err = say(*command)
            assert code == 2 and f"{name} cannot be written: models are saved as .safetensors" in err
    assert list(Path().iterdir()) == []
    assert say("convert", sd15_folder, "model-v1.5", "--quiet").out == "model-v1.5\n"


def test_loras_are_baked_in(say, sd15_folder: Path) -> None:
    pipeline = tiny_pipeline("sd15")
    lora = Lora(random_parts(pipeline, ("unet",)))
    lora.save("style.safetensors")
    code, out, _ = say("merge", sd15_folder, "baked", "--lora", "style.safetensors=0.5")
    assert code == 0 and out.startswith("baked: a model in a diffusers folder")
    path, delta = next(iter(lora.parts["unet"].items()))
    weight = pipeline.unet.get_submodule(path).weight.detach()
    baked = load_base("baked").unet.get_submodule(path).weight
    assert torch.allclose(baked, weight + 0.5 * delta.dense(weight.shape), atol=1e-6)


def test_motion_loras_are_baked_into_motion(say, motion_folder: Path) -> None:
    Lora(motion_parts(tiny_motion())).save("pan.safetensors")
    assert say("merge", motion_folder, "m.safetensors", "--motion-lora", "pan.safetensors=0.5")[0] == 0
    assert identify("m.safetensors").kind == "motion"
    before, after = (
        MotionModel.load(motion_folder).state_dict(),
        MotionModel.load("m.safetensors").state_dict(),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("attention_blocks" in name for name in changed)


def test_models_are_mixed(say, sd15_folder: Path) -> None:
    tiny_pipeline("sd15", seed=1).save_pretrained("other")
    assert say("merge", sd15_folder, "half.safetensors", "--with", "other=0.5")[0] == 0
    a, b, half = (load_base(name).unet.conv_in.weight for name in (sd15_folder, "other", "half.safetensors"))
    assert torch.allclose(half, (a + b) / 2, atol=1e-6)


def test_flags_of_merge_are_checked(say, sd15_folder: Path) -> None:
    code, _, err = say("merge", sd15_folder, "out")
    assert code == 2 and "Nothing to merge" in err
    code, _, err = say("merge", sd15_folder, "out", "--with", "other")
    assert code == 2 and "--with is other, but should be FILE=SHARE" in err
