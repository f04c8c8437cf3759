"""ControlNets in all their files: the same net out of each, or a sentence."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from controlnets import original_state, save_controlnet, tiny_controlnet
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline, tiny_unet

from stillmotion.checkpoints.controlnet import load_controlnet, original_names, skip_widths
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.single_file import CONFIGS
from stillmotion.errors import Damaged, Mismatch, UnknownFile, WrongKind


def written(net: ControlNetModel, folder: Path, how: str) -> Path:
    if how == "folder":
        net.save_pretrained(folder / "net")
        return folder / "net"
    if how == "folder without config":
        net.save_pretrained(folder / "net")
        (folder / "net" / "config.json").unlink()
        return folder / "net"
    if how == "pth":
        torch.save({"state_dict": original_state(net)}, folder / "net.pth")
        return folder / "net.pth"
    if how == "half":
        halves = {name: tensor.half() for name, tensor in net.state_dict().items()}
        save_file(halves, folder / "net.safetensors")
        return folder / "net.safetensors"
    if how == "whole checkpoint":  # as control_sd15_canny.pth
        base = {
            f"model.diffusion_model.{name}": torch.ones(2) for name in ("input_blocks.0.0.bias", "out.2.bias")
        }
        save_file(original_state(net) | base, folder / "net.safetensors")
        return folder / "net.safetensors"
    prefix = {"diffusers": None, "original": "control_model.", "bare": ""}[how]
    return save_controlnet(net, folder / "net.safetensors", prefix)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    "how",
    ["folder", "folder without config", "diffusers", "original", "bare", "pth", "half", "whole checkpoint"],
)
def test_every_file_gives_the_same_net(kind, how, tmp_path) -> None:
    net = tiny_controlnet(kind)
    path = written(net, tmp_path, how)
    loaded = load_controlnet(path, tiny_unet(kind), torch.float32)
    assert isinstance(loaded, ControlNetModel) and not loaded.training
    assert list(loaded.state_dict()) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], tensor, atol=1e-3 if how == "half" else 0)
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, net.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.randn(2, 6)} if kind == "sdxl" else None
    call = {"controlnet_cond": torch.rand(2, 3, 16, 16), "added_cond_kwargs": added, "return_dict": False}
    (down, mid), (expected_down, expected_mid) = (each(sample, 10, text, **call) for each in (loaded, net))
    if how != "half":
        assert torch.equal(mid, expected_mid) and all(map(torch.equal, down, expected_down))
    if how not in ("whole checkpoint",):
        assert identify(path).kind == "controlnet"


@pytest.mark.parametrize("size", ["sd15", "sd21", "sdxl"])
def test_names_of_full_sizes_are_those_of_diffusers(size) -> None:
    """Every tensor of a real ControlNet has the name that diffusers' own conversion reads."""
    unet = json.loads((CONFIGS / size / "unet" / "config.json").read_text())
    with torch.device("meta"):
        net = ControlNetModel.from_unet(UNet2DConditionModel.from_config(unet), load_weights_from_unet=False)
    state = {name: torch.empty(tensor.shape, device="meta") for name, tensor in net.state_dict().items()}
    names = original_names(state)
    assert len(set(names.values())) == len(state)
    stored = {f"control_model.{name}": state[ours] for ours, name in names.items()}
    converted = single_file_utils.convert_controlnet_checkpoint(stored, dict(net.config))
    found = {name: tensor.shape for name, tensor in converted.items() if tensor is not None}
    forgotten = {name for name in state if name.startswith("add_embedding.")}  # in diffusers 0.42
    assert found == {
        name: tensor.shape for name, tensor in state.items() if name not in forgotten - found.keys()
    }
    assert skip_widths(net.config) == tuple(layer.out_channels for layer in net.controlnet_down_blocks)


def test_a_small_net_is_built_after_its_shapes(tmp_path) -> None:
    """As diffusers/controlnet-canny-sdxl-1.0-small: no attention in it."""
    net = tiny_controlnet(
        "sdxl",
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
    )
    path = save_controlnet(net, tmp_path / "small.safetensors")
    loaded = load_controlnet(path, tiny_unet("sdxl"), torch.float32)
    assert list(loaded.state_dict()) == list(net.state_dict())


def test_shuffle_pools_its_hints(tmp_path) -> None:
    for name, pooled in (("control_v11e_sd15_shuffle.safetensors", True), ("depth.safetensors", False)):
        path = save_controlnet(tiny_controlnet(), tmp_path / name, "control_model.")
        assert load_controlnet(path, tiny_unet(), torch.float32).config.global_pool_conditions is pooled


@pytest.mark.parametrize("how", ["folder", "diffusers", "original"])
def test_a_net_of_another_base_is_refused_before_its_weights_are_read(how, tmp_path) -> None:
    path = written(tiny_controlnet("sdxl"), tmp_path, how)
    with pytest.raises(Mismatch, match="net.* is a ControlNet for .*text 64.*, but the base is .*text 32"):
        load_controlnet(path, tiny_unet("sd15"), torch.float32)
    wide = tiny_unet(block_out_channels=(32, 96))
    path = written(tiny_controlnet("sd15"), tmp_path, how)
    with pytest.raises(Mismatch, match="widths 32 64.*widths 32 96"):
        load_controlnet(path, wide, torch.float32)


def changed(tmp_path: Path, **tensors) -> Path:
    state = load_file(save_controlnet(tiny_controlnet(), tmp_path / "net.safetensors"))
    state |= {name: tensor for name, tensor in tensors.items() if tensor is not None}
    state = {name: tensor for name, tensor in state.items() if tensors.get(name, 0) is not None}
    save_file(state, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"conv_in.bias": torch.full((32,), torch.nan)}, Damaged, "nan or inf.* in conv_in.bias"),
        ({"conv_in.bias": torch.full((32,), torch.inf)}, Damaged, "nan or inf"),
        ({"conv_in.bias": torch.zeros(31)}, Damaged, "conv_in.bias is .31,.; expected .32,."),
        ({"mid_block.resnets.0.conv1.bias": None}, Damaged, "mid_block.resnets.0.conv1.bias is missing"),
        ({"task_embedding": torch.zeros(6, 32)}, WrongKind, "ControlNet Union"),
        ({"lora_controlnet": torch.zeros(0)}, WrongKind, "Control-LoRA"),
    ],
)
def test_damaged_nets_are_a_sentence(tensors, error, words, tmp_path) -> None:
    with pytest.raises(error, match=words):
        load_controlnet(changed(tmp_path, **tensors), tiny_unet(), torch.float32)


def test_what_is_no_controlnet_is_named(tmp_path, sd15_folder, motion_folder) -> None:
    for path, words in ((sd15_folder, "a model in a diffusers folder"), (motion_folder, "motion module")):
        with pytest.raises(WrongKind, match=f"{words}.*, not a ControlNet"):
            load_controlnet(path, tiny_unet(), torch.float32)
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UnknownFile, match="x.safetensors is not a file we know"):
        load_controlnet(tmp_path / "x.safetensors", tiny_unet(), torch.float32)
    net = tiny_controlnet()
    net.save_pretrained(tmp_path / "union")
    config = json.loads((tmp_path / "union" / "config.json").read_text())
    (tmp_path / "union" / "config.json").write_text(
        json.dumps(config | {"_class_name": "ControlNetUnionModel"})
    )
    with pytest.raises(WrongKind, match="union is a ControlNetUnionModel; stillmotion applies plain"):
        load_controlnet(tmp_path / "union", tiny_unet(), torch.float32)
    broken = config | {"block_out_channels": [3, "x"]}
    (tmp_path / "union" / "config.json").write_text(json.dumps(broken))
    with pytest.raises(Damaged, match="does not describe a ControlNetModel"):
        load_controlnet(tmp_path / "union", tiny_unet(), torch.float32)


def test_loading_in_threads_patches_nothing(tmp_path) -> None:
    path = save_controlnet(tiny_controlnet(), tmp_path / "net.safetensors")
    before, found = torch.nn.Module.register_parameter, []

    def load() -> None:
        net = load_controlnet(path, tiny_unet(), torch.float32)
        found.append(all(not tensor.is_meta for tensor in net.state_dict().values()))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    made = [torch.nn.Linear(2, 2).weight.is_meta for _ in range(200)]
    for thread in threads:
        thread.join()
    assert found == [True] * 3 and not any(made) and torch.nn.Module.register_parameter is before


def test_a_base_with_an_image_prompt_adapter(tmp_path) -> None:
    path = save_controlnet(tiny_controlnet(), tmp_path / "net.safetensors", "")
    unet = tiny_pipeline().unet
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    assert load_controlnet(path, unet, torch.float32) is not None
