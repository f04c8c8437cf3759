"""Motion models in files: saved and loaded in every form, exact, atomic, and readable by diffusers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TINY_MOTION, tiny_motion, tiny_unet

from stillmotion.attachments.motion import attach_motion
from stillmotion.checkpoints import motion_model
from stillmotion.checkpoints.motion_keys import POSITIONS
from stillmotion.checkpoints.motion_layout import from_canonical
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Damaged, OutputError, UnknownFile, WeightsError, WrongKind


def model(**overrides) -> MotionModel:
    net = tiny_motion(**overrides)
    return MotionModel.from_state(net.family, net.state_dict())


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


FORMS = ("folder", "motion.safetensors")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mid": False, "name": "mine"},
        {"motion_norm": "pooled", "resnet_norm": "pooled"},
        {"heads": (2, 8)},
    ],
)
def test_a_round_trip_keeps_every_column_and_every_bit(form: str, overrides: dict, tmp_path: Path) -> None:
    saved = model(**overrides, beta_end=0.02, fps=12.0)
    assert saved.save(tmp_path / form) == tmp_path / form
    loaded = MotionModel.load(tmp_path / form)
    assert type(loaded) is MotionModel and loaded.spec == saved.spec and same(loaded, saved)
    assert loaded.name == str(tmp_path / form) and not loaded.training


def test_diffusers_loads_our_folder(tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    saved = model(heads=(2, 4))
    saved.save(tmp_path / "motion")
    adapter, report = MotionAdapter.from_pretrained(tmp_path / "motion", output_loading_info=True)
    assert not any(report.values())
    assert adapter.config.motion_num_attention_heads == [2, 4] and adapter.config.motion_max_seq_length == 32
    weight = adapter.down_blocks[0].motion_modules[0].transformer_blocks[0].attn2.to_k.weight
    prefix = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    name = f"{prefix}.attention_blocks.1.to_k.weight"
    assert torch.equal(weight, saved.state_dict()[name])


def test_we_load_a_folder_of_diffusers(tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    torch.manual_seed(0)
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=4,
        motion_norm_num_groups=8, motion_max_seq_length=24, use_motion_mid_block=False,
    )  # fmt: skip
    adapter.save_pretrained(tmp_path / "adapter")
    loaded = MotionModel.load(tmp_path / "adapter")
    assert (loaded.spec.heads, loaded.spec.norm_groups, loaded.spec.positions) == ((4, 4), 8, 24)
    theirs = adapter.state_dict()["up_blocks.1.motion_modules.1.transformer_blocks.0.norm3.weight"]
    ours = "up_blocks.1.motion_modules.1.temporal_transformer.transformer_blocks.0.ff_norm.weight"
    assert torch.equal(loaded.state_dict()[ours], theirs)
    assert not any(key.endswith(POSITIONS) for key in loaded.state_dict())


def test_a_loaded_model_animates_as_before(tmp_path: Path) -> None:
    unet, saved = tiny_unet(), model()
    saved.save(tmp_path / "m.safetensors")
    x, text = torch.randn(4, 4, 8, 8), torch.randn(4, 7, 32)
    results = []
    for net in (saved, MotionModel.load(tmp_path / "m.safetensors")):
        with attach_motion(unet, net, frames=4), torch.no_grad():
            results.append(unet(x, 5, text).sample)
    assert torch.equal(*results)


@pytest.mark.parametrize("form", FORMS)
def test_altered_positions_travel(form: str, tmp_path: Path) -> None:
    net = tiny_motion()
    state = net.state_dict()
    for prefix, (channels, _) in net.spec.modules().items():
        for end in POSITIONS:
            state[f"{prefix}.temporal_transformer.{end}"] = torch.randn(1, 32, channels)
        state[f"{prefix}.temporal_transformer.{POSITIONS[1]}"] = state[
            f"{prefix}.temporal_transformer.{POSITIONS[0]}"
        ]
    saved = MotionModel.from_state(net.family, state)
    saved.save(tmp_path / form)
    loaded = MotionModel.load(tmp_path / form)
    assert same(loaded, saved) and len(loaded.state_dict()) == len(state)


@pytest.mark.parametrize("layout", ["animatediff", "diffusers", "hotshot"])
def test_layouts_of_a_single_file(layout, tmp_path: Path) -> None:
    saved = model()
    saved.save(tmp_path / "m.safetensors", layout=layout)
    assert (
        load_file(tmp_path / "m.safetensors").keys()
        == from_canonical(saved.state_dict(), saved.spec, layout).keys()
    )
    assert same(MotionModel.load(tmp_path / "m.safetensors"), saved)


def test_half_precision_and_variant(tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    saved = model()
    saved.save(tmp_path, dtype=torch.float16, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert {tensor.dtype for tensor in load_file(next(tmp_path.glob("*.safetensors"))).values()} == {
        torch.float16
    }
    loaded = MotionModel.load(tmp_path)
    assert all(torch.equal(v, saved.state_dict()[k].half()) for k, v in loaded.state_dict().items())
    wider = MotionModel.load(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in wider.parameters()} == {torch.float32}
    MotionAdapter.from_pretrained(tmp_path, variant="fp16")
    assert saved.spec == loaded.spec and next(saved.parameters()).dtype == torch.float32


def test_pia_keeps_its_first_convolution(tmp_path: Path) -> None:
    saved = model(mid=False, name="pia", conv_in=9)
    saved.extra = {"conv_in.weight": torch.randn(32, 9, 3, 3), "conv_in.bias": torch.randn(32)}
    for form in FORMS:
        saved.save(tmp_path / form)
        loaded = MotionModel.load(tmp_path / form)
        assert loaded.extra.keys() == saved.extra.keys() and loaded.spec.conv_in == 9
        assert torch.equal(loaded.extra["conv_in.weight"], saved.extra["conv_in.weight"])


@pytest.mark.parametrize("wrap", ["module.", "module._orig_mod.", "unet."])
def test_what_the_original_train_py_saves_can_be_used(wrap: str, tmp_path: Path) -> None:
    """A whole UNet behind a prefix on every key, which the original cannot read itself."""
    net = tiny_motion()
    state = {**tiny_unet().state_dict(), **from_canonical(net.state_dict(), net.spec, "animatediff")}
    wrapped = {f"{wrap}{key}": value for key, value in state.items()}
    torch.save({"epoch": 1, "global_step": 9, "state_dict": wrapped}, tmp_path / "c.ckpt")
    loaded = MotionModel.load(tmp_path / "c.ckpt")
    assert same(loaded, net) and any("whole UNet" in note for note in loaded.notes)


def test_motion_inside_a_pipeline_folder(sd15_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "emoji")
    with pytest.raises(WrongKind, match="emoji is a text-to-image model without motion inside"):
        MotionModel.load(folder)
    saved = model()
    for part in ("motion_adapter", "motion"):
        saved.save(folder / part)
        assert same(MotionModel.load(folder), saved)


def test_the_bundled_model_by_name(
    sd15_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillmotion.request.installed_models._folder", lambda _: tmp_path / "emoji")
    saved = model()
    saved.save(
        shutil.copytree(sd15_folder, tmp_path / "emoji") / "motion", dtype=torch.float16, variant="fp16"
    )
    loaded = MotionModel.load("emoji")
    assert loaded.spec == saved.spec and loaded.name == "emoji"


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    lora = "up_blocks.3.attentions.1.transformer_blocks.0.attn1.processor.to_v_lora"
    save_file(
        {f"{lora}.down.weight": torch.zeros(128, 320), f"{lora}.up.weight": torch.zeros(320, 128)},
        tmp_path / "v3_sd15_adapter.safetensors",
    )
    with pytest.raises(
        WrongKind, match="is the v3 domain adapter .*, not a motion module. Its use: give it as a LoRA"
    ):
        MotionModel.load(tmp_path / "v3_sd15_adapter.safetensors")
    save_file({"bert.weight": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(UnknownFile, match="looked for"):
        MotionModel.load(tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="There is no file or folder .*nothing.ckpt"):
        MotionModel.load(tmp_path / "nothing.ckpt")


def test_an_incomplete_file_names_what_is_missing(tmp_path: Path) -> None:
    saved = model()
    saved.save(tmp_path / "m.safetensors")
    state = load_file(tmp_path / "m.safetensors")
    gone = "up_blocks.1.motion_modules.0.temporal_transformer.proj_out.bias"
    del state[gone]
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=f"{gone} is missing"):
        MotionModel.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_save_leaves_the_old_file(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = model(), model(seed=2)
    first.save(tmp_path / form)

    def half_done(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(motion_model, "save_file", half_done)
    with pytest.raises(KeyboardInterrupt):
        second.save(tmp_path / form)
    assert same(MotionModel.load(tmp_path / form), first)
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".")]


def test_names_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"not as \.ckpt"):
        model().save(tmp_path / "m.ckpt")
    with pytest.raises(OutputError, match="for the animatediff layout name a .safetensors file"):
        model().save(tmp_path / "m", layout="animatediff")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        model().save(tmp_path / "file" / "m.safetensors")


def test_up_paths_that_adapters_cannot_mirror_go_into_one_file(tmp_path: Path) -> None:
    net = MotionModel.from_spec(replace(TINY_MOTION, up=((64,), (32, 32, 32))))
    with pytest.raises(WeightsError, match="mirrors its up path"):
        net.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    net.save(tmp_path / "m.safetensors")
    assert MotionModel.load(tmp_path / "m.safetensors").spec == net.spec


def test_the_header_tells_programs_what_it_is(tmp_path: Path) -> None:
    saved = model()
    saved.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and json.loads(metadata["stillmotion"])["name"] == "tiny"


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    saved = model()
    saved.save(tmp_path / "m.safetensors")
    metadata = {"stillmotion": json.dumps({"name": "x", "channels": [8], "layers": [1], "heads": [1]})}
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(Damaged, match="header says x motion"):
        MotionModel.load(tmp_path / "m.safetensors")
