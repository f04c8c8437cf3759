"""Files from one layout to another and back: the same bits, and never half a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, StableDiffusionPipeline
from loras import assert_same, motion_parts, random_parts
from safetensors.torch import load_file, save_file
from tiny import tiny_motion, tiny_pipeline
from torch import Tensor, nn

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.convert import convert, stored_dtypes
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import OutputError, WrongKind


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_files(left: Path, right: Path) -> bool:
    """The same tensors; the header's order is of no meaning."""
    a, b = load_file(left), load_file(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_pipelines(left, right) -> bool:
    parts = [name for name, part in left.components.items() if isinstance(part, nn.Module)]
    return all(same(getattr(left, name), getattr(right, name)) for name in parts)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_base_goes_to_a_folder_and_back(kind: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(kind)
    file = save_single_file(pipeline, tmp_path / "it.safetensors")
    folder = convert(file, tmp_path / "folder")
    assert same_pipelines(type(pipeline).from_pretrained(folder), pipeline)
    again = convert(folder, tmp_path / "again.safetensors")
    assert same_pipelines(load_base(again), pipeline)
    assert same_files(again, file)


def test_configs_name_no_path_of_this_machine(sd15_folder: Path, tmp_path: Path) -> None:
    folder = convert(sd15_folder, tmp_path / "copy")
    texts = [file.read_text() for file in folder.rglob("*.json")]
    assert len(texts) > 4 and not any(str(sd15_folder.parent) in text for text in texts)


def test_precision_stays_unless_another_is_asked_for(tmp_path: Path) -> None:
    half = save_single_file(tiny_pipeline("sd15"), tmp_path / "half.safetensors", torch.float16)
    assert stored_dtypes(half) == {"default": torch.float16}
    folder = convert(half, tmp_path / "folder")
    assert set(stored_dtypes(folder).values()) == {torch.float16, torch.float32}  # the rest would be float32
    assert {stored_dtypes(folder)[part] for part in ("unet", "vae", "text_encoder")} == {torch.float16}
    whole = convert(half, tmp_path / "whole.safetensors", dtype=torch.float32)
    assert stored_dtypes(whole) == {"default": torch.float32}


@pytest.mark.parametrize("layout", ["animatediff", "diffusers", "hotshot"])
def test_motion_in_every_layout(layout: str, tmp_path: Path) -> None:
    net = tiny_motion()
    motion = MotionModel.from_state(net.family, net.state_dict())
    source = motion.save(tmp_path / "source.safetensors")
    file = convert(source, tmp_path / "other.safetensors", layout)
    assert identify(file).layout == layout
    back = convert(file, tmp_path / "back.safetensors", "animatediff")
    assert same_files(back, source)


def test_motion_as_diffusers_reads_it(tmp_path: Path) -> None:
    net = tiny_motion()
    source = MotionModel.from_state(net.family, net.state_dict()).save(tmp_path / "source.safetensors")
    folder = convert(source, tmp_path / "motion")
    adapter = MotionAdapter.from_pretrained(folder)
    assert adapter.config.motion_max_seq_length == net.spec.positions
    assert same(MotionModel.load(convert(folder, tmp_path / "back.safetensors")), MotionModel.load(source))


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers"])
def test_style_loras_in_every_layout(layout: str, tmp_path: Path) -> None:
    parts = random_parts(tiny_pipeline("sd15"), alpha=lambda path: 4.0)
    source = Lora(parts).save(tmp_path / "source.safetensors", "kohya")
    other = convert(source, tmp_path / "other.safetensors", layout)
    assert_same(Lora.load(other).parts, Lora.load(source).parts)
    back = convert(other, tmp_path / "back.safetensors", "kohya")
    assert_same(Lora.load(back).parts, Lora.load(source).parts)


def test_a_lora_in_a_folder_is_for_diffusers(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("sd15")
    source = Lora(random_parts(pipeline, ("unet",))).save(tmp_path / "source.safetensors")
    folder = convert(source, tmp_path / "lora")
    pipeline.load_lora_weights(folder, adapter_name="it")
    assert pipeline.get_list_adapters() == {"unet": ["it"]}


def test_motion_loras_keep_their_names_when_nothing_is_said(tmp_path: Path) -> None:
    source = Lora(motion_parts(tiny_motion())).save(tmp_path / "source.safetensors", "peft")
    back = convert(source, tmp_path / "back.safetensors")
    assert identify(back).kind == "motion-lora"
    assert_same(Lora.load(back).parts, Lora.load(source).parts)


def pan(path: Path) -> Path:
    return Lora(motion_parts(tiny_motion())).save(path)


@pytest.mark.parametrize(
    ("make", "target", "layout", "error", "words"),
    [
        ("base", "x.safetensors", "kohya", WrongKind, "has no kohya layout: .* ldm, diffusers"),
        ("base", "x.safetensors", "diffusers", OutputError, "a whole model of diffusers is a folder"),
        ("base", "folder", "ldm", OutputError, "folder is a folder, diffusers' layout: for ldm"),
        ("base", "x.ckpt", None, OutputError, "saved as .safetensors or as a folder"),
        ("lora", "x.safetensors", "hotshot", WrongKind, "has no hotshot layout: .* kohya, peft"),
        ("vae", "x.safetensors", None, WrongKind, "is a VAE .*; only motion modules, LoRAs and whole"),
    ],
)
def test_what_makes_no_sense_is_said(make, target, layout, error, words, tmp_path, sd15_folder) -> None:
    sources = {"base": sd15_folder, "vae": sd15_folder / "vae"}
    source = sources.get(make) or pan(tmp_path / "pan.safetensors")
    with pytest.raises(error, match=words):
        convert(source, tmp_path / target, layout)
    assert not (tmp_path / target).exists()


def test_nothing_is_overwritten_or_left_half_written(sd15_folder, tmp_path, monkeypatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="overwrite=True"):
        convert(sd15_folder, target)
    with pytest.raises(OutputError, match=r"holds other things than a model \(mine.txt\)"):
        convert(sd15_folder, target, overwrite=True)
    (target / "mine.txt").rename(target / "model_index.json")

    def breaks(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", breaks)
    with pytest.raises(KeyboardInterrupt):
        convert(sd15_folder, target, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (target / "model_index.json").read_text() == "mine"
    monkeypatch.undo()
    convert(sd15_folder, target, overwrite=True)
    assert (target / "unet").is_dir() and (target / "model_index.json").read_text() != "mine"


def test_a_card_of_settings_comes_back_from_the_header(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("sd15")
    pipeline.scheduler.register_to_config(prediction_type="v_prediction", timestep_spacing="trailing")
    folder = convert(save_single_file(pipeline, tmp_path / "it.safetensors"), tmp_path / "folder")
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (settings["prediction_type"], settings["timestep_spacing"]) == ("v_prediction", "trailing")


def test_pickles_of_old_checkpoints_become_safetensors(sd15_folder: Path, tmp_path: Path) -> None:
    net = tiny_motion()
    state: dict[str, Tensor] = dict(net.state_dict())
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "m.ckpt"
    )
    file = convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors")
    found = MotionModel.load(file).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, tmp_path / "l.safetensors")
