"""Pipelines as one file in the LDM layout: read back by diffusers' own converters, and ours, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as diffusers_tables
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline, tiny_unet
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.ldm.configs import CONFIGS_KEY
from stillmotion.checkpoints.ldm.keys import EMA, UNET, ema_name, unet_names
from stillmotion.checkpoints.ldm.write import ldm_state, save_single_file
from stillmotion.errors import Damaged, Mismatch, OutputError, UnknownFile, WrongKind
from stillmotion.sampling.animator import Animator

DEEP = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
EMOJI = {
    "block_out_channels": (16, 32, 32),
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


def openclip(kind: type, width: int) -> nn.Module:
    torch.manual_seed(width)
    return kind(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=width,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=width,
            hidden_act="gelu",
        )
    ).eval()


def sd2() -> StableDiffusionPipeline:
    pipeline = tiny_pipeline("sd15")
    pipeline.register_modules(text_encoder=openclip(CLIPTextModel, 32))
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


def sdxl():
    pipeline = tiny_pipeline("sdxl")
    pipeline.register_modules(text_encoder_2=openclip(CLIPTextModelWithProjection, 48))
    return pipeline


def shaped(**unet) -> StableDiffusionPipeline:
    pipeline = tiny_pipeline("sd15")
    pipeline.register_modules(unet=tiny_unet(**unet))
    return pipeline


PIPELINES = {
    "sd15": lambda: tiny_pipeline("sd15"),
    "sd2": sd2,
    "sdxl": sdxl,
    "deep": lambda: shaped(**DEEP),
    "emoji": lambda: shaped(**EMOJI),
    "uneven": lambda: shaped(**(DEEP | {"layers_per_block": (1, 2, 3)})),
}


def parts_of(pipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("shape", PIPELINES)
def test_what_is_written_loads_as_the_same_pipeline(shape: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[shape]()
    loaded = load_base(save_single_file(pipeline, tmp_path / "it.safetensors"))
    assert type(loaded) is type(pipeline) and parts_of(loaded).keys() == parts_of(pipeline).keys()
    for name, part in parts_of(pipeline).items():
        assert same(getattr(loaded, name).state_dict(), part.state_dict()), name
    assert loaded.scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    assert loaded.tokenizer("a red rocket").input_ids == pipeline.tokenizer("a red rocket").input_ids


@pytest.mark.parametrize("shape", ["sd15", "sd2", "sdxl", "deep", "emoji"])
def test_diffusers_own_converters_read_it_back(shape: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[shape]()
    state = load_file(save_single_file(pipeline, tmp_path / "it.safetensors"))
    unet, vae = pipeline.unet, pipeline.vae
    assert same(diffusers_tables.convert_ldm_unet_checkpoint(dict(state), unet.config), unet.state_dict())
    assert same(diffusers_tables.convert_ldm_vae_checkpoint(dict(state), vae.config), vae.state_dict())
    first, second = pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
    if shape == "sd2":
        found = diffusers_tables.convert_open_clip_checkpoint(first, state, "cond_stage_model.model.")
    else:
        found = diffusers_tables.convert_ldm_clip_checkpoint(state)
    assert same(
        {name.removeprefix("text_model."): tensor for name, tensor in found.items()}, plain_state(first)
    )
    if second is not None:
        found = diffusers_tables.convert_open_clip_checkpoint(second, state, "conditioner.embedders.1.model.")
        assert same(
            {name.removeprefix("text_model."): tensor for name, tensor in found.items()}, plain_state(second)
        )


def test_diffusers_knows_the_text_encoders_by_their_names() -> None:
    sd15, second, both = (ldm_state(PIPELINES[shape]()) for shape in ("sd15", "sd2", "sdxl"))
    assert diffusers_tables.is_clip_model(sd15) and not diffusers_tables.is_open_clip_model(sd15)
    assert diffusers_tables.is_open_clip_model(second) and not diffusers_tables.is_clip_model(second)
    assert diffusers_tables.is_clip_sdxl_model(both) and diffusers_tables.is_open_clip_sdxl_model(both)


PUBLISHED = (
    "input_blocks.4.0.skip_connection.bias",
    "input_blocks.9.0.op.weight",
    "input_blocks.11.0.out_layers.3.bias",
    "middle_block.1.proj_in.weight",
    "output_blocks.2.1.conv.weight",
    "output_blocks.8.2.conv.weight",
    "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias",
)


def test_names_of_the_published_model_are_the_original_ones() -> None:
    with torch.device("meta"):
        names = unet_names(UNet2DConditionModel(cross_attention_dim=768).state_dict())
    assert len(set(names.values())) == len(names) == 686
    for name in PUBLISHED:
        assert UNET + name in names.values()


def test_a_dtype_and_the_paths_of_this_machine(sd15_folder: Path, tmp_path: Path) -> None:
    file = save_single_file(load_base(sd15_folder), tmp_path / "half.safetensors", torch.float16)
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert str(sd15_folder) not in json.dumps(metadata) and metadata["modelspec.prediction_type"] == "epsilon"
    assert load_base(file, torch.float16).unet.dtype == torch.float16


def test_the_common_vocabulary_stays_out_of_the_header(tmp_path: Path) -> None:
    emoji = load_base("emoji")
    file = save_single_file(emoji, tmp_path / "it.safetensors")
    with safe_open(file, "pt") as opened:
        assert len(opened.metadata()[CONFIGS_KEY]) < 20_000
    assert identify(file).kind == "checkpoint" and identify(file).family is None
    loaded = load_base(file)
    assert same(loaded.unet.state_dict(), emoji.unet.state_dict())
    assert (loaded.tokenizer.model_max_length, loaded.tokenizer.pad_token) == (32, "<|endoftext|>")
    assert dict(loaded.scheduler.config).items() >= {"rescale_betas_zero_snr": True}.items()


@pytest.mark.slow
def test_a_file_of_the_emoji_base_moves_with_the_emoji_motion(tmp_path: Path) -> None:
    file = save_single_file(load_base("emoji"), tmp_path / "it.safetensors")
    asked = {"frames": 2, "num_inference_steps": 1, "width": 64, "height": 64, "seed": 1}
    one = Animator.load(str(file), motion="emoji", dtype="fp32").animate("rocket", **asked)
    two = Animator.load("emoji", dtype="fp32").animate("rocket", **asked)
    assert (one.frames == two.frames).all()


def test_a_config_of_the_user_wins_over_the_header(sd15_folder: Path, tmp_path: Path) -> None:
    file = save_single_file(sd2_scheduler(), tmp_path / "it.safetensors")
    assert load_base(file).scheduler.config.prediction_type == "v_prediction"
    assert load_base(file, config=sd15_folder).scheduler.config.prediction_type == "epsilon"
    assert load_base(file, prediction_type="epsilon").scheduler.config.prediction_type == "epsilon"


def sd2_scheduler() -> StableDiffusionPipeline:
    pipeline = tiny_pipeline("sd15")
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


@pytest.mark.parametrize("path", ["../evil.json", "/etc/x.json", "a/b/c.json", "unet/run.py"])
def test_a_header_cannot_write_anywhere_else(path: str, tmp_path: Path) -> None:
    file = save_single_file(tiny_pipeline("sd15"), tmp_path / "it.safetensors")
    save_file(load_file(file), tmp_path / "evil.safetensors", {CONFIGS_KEY: json.dumps({path: "{}"})})
    with pytest.raises(Damaged, match="evil.safetensors has .* among its configs"):
        load_base(tmp_path / "evil.safetensors")


def averaged(pipeline: StableDiffusionPipeline, only: bool) -> dict[str, Tensor]:
    """The file of a training with EMA: all tensors of the UNet again, plus one."""
    state = ldm_state(pipeline)
    unet = {name: tensor for name, tensor in state.items() if name.startswith(UNET)}
    averages = {
        EMA + "diffusion_model" + name.removeprefix(UNET).replace(".", ""): tensor + 1
        for name, tensor in unet.items()
    }
    counters = {f"{EMA}decay": torch.tensor(0.99), f"{EMA}num_updates": torch.tensor(7)}
    rest = {name: tensor for name, tensor in state.items() if name not in unet} if only else state
    return {**rest, **averages, **counters}


def test_averaged_weights_are_taken_when_asked_for_or_alone(sd15_folder: Path, tmp_path: Path) -> None:
    pipeline = tiny_pipeline("sd15")
    torch.save({"state_dict": averaged(pipeline, only=False)}, tmp_path / "both.ckpt")
    torch.save({"state_dict": averaged(pipeline, only=True)}, tmp_path / "ema.ckpt")
    plain = pipeline.unet.state_dict()
    average = {name: tensor + 1 for name, tensor in plain.items()}
    assert same(load_base(tmp_path / "both.ckpt", config=sd15_folder).unet.state_dict(), plain)
    both = load_base(tmp_path / "both.ckpt", config=sd15_folder, ema=True)
    assert same(both.unet.state_dict(), average)
    assert same(load_base(tmp_path / "ema.ckpt", config=sd15_folder).unet.state_dict(), average)
    assert "averaged weights (EMA) beside" in " ".join(identify(tmp_path / "both.ckpt").notes)
    assert ema_name(f"{UNET}input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


def test_a_file_without_averages_says_so(tmp_path: Path) -> None:
    file = save_single_file(tiny_pipeline("sd15"), tmp_path / "it.safetensors")
    with pytest.raises(Damaged, match=r"it.safetensors has no averaged weights \(EMA\)"):
        load_base(file, ema=True)


def test_what_has_no_form_in_one_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="written as .safetensors, not as .ckpt"):
        save_single_file(tiny_pipeline("sd15"), tmp_path / "it.ckpt")
    with pytest.raises(UnknownFile, match="The UNet has encoder_hid_proj"):
        save_single_file(
            shaped(encoder_hid_dim=32, encoder_hid_dim_type="text_proj"), tmp_path / "it.safetensors"
        )
    without = tiny_pipeline("sd15")
    without.vae = None
    with pytest.raises(WrongKind, match="has no vae: only Stable Diffusion"):
        save_single_file(without, tmp_path / "it.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_vae_of_other_channels_is_refused(tmp_path: Path, sd15_folder: Path) -> None:
    from tiny import tiny_vae

    tiny_vae(latent_channels=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(Mismatch, match="wide is a VAE of 8 latent channels, but .* draws 4"):
        load_base(sd15_folder, vae=tmp_path / "wide")
