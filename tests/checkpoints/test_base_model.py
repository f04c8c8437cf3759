"""Base models from folders and single files, without a network; every missing part in words."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from ldm_layout import clip_to_ldm, open_clip_to_ldm, unet_to_ldm, vae_to_ldm
from safetensors.torch import save_file
from tiny import tiny_pipeline, tiny_vae
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stillmotion.checkpoints import single_file
from stillmotion.checkpoints.base_model import load_base, native_size
from stillmotion.checkpoints.files import Header
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.checkpoints.modules import make_module
from stillmotion.checkpoints.prediction import detect_prediction
from stillmotion.checkpoints.single_file import CONFIGS
from stillmotion.errors import Damaged, UnknownFile, WeightsError, WrongKind

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a test of single files asked for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def ldm_state(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """A tiny SD 1.x pipeline as DreamBooth files have it."""
    return {
        **unet_to_ldm(pipeline.unet.state_dict(), 1, 2),
        **vae_to_ldm(pipeline.vae.state_dict(), 2),
        **clip_to_ldm(pipeline.text_encoder.state_dict()),
    }


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return tiny_pipeline("sd15")


@pytest.fixture
def ckpt(pipeline: StableDiffusionPipeline, tmp_path: Path) -> Path:
    torch.save({"state_dict": ldm_state(pipeline), "global_step": 5}, tmp_path / "dream.ckpt")
    return tmp_path / "dream.ckpt"


def image(pipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    return pipeline("a red rocket", generator=generator, **size).images


def test_a_ckpt_gives_the_pipeline_it_was_made_of(pipeline, ckpt: Path, sd15_folder: Path) -> None:
    loaded = load_base(ckpt, config=sd15_folder)
    assert type(loaded) is StableDiffusionPipeline and loaded.safety_checker is None
    assert all(same(getattr(loaded, part), getattr(pipeline, part)) for part in PARTS)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(image(loaded), image(pipeline))
    assert same(load_base(ckpt.parent, config=sd15_folder).unet, pipeline.unet)


def test_a_safetensors_in_half_precision(pipeline, sd15_folder: Path, tmp_path: Path) -> None:
    half = {key: value.half().contiguous() for key, value in ldm_state(pipeline).items()}
    save_file(half, tmp_path / "x.safetensors")
    loaded = load_base(tmp_path / "x.safetensors", torch.float16, config=sd15_folder)
    assert {getattr(loaded, part).dtype for part in PARTS} == {torch.float16}
    assert all(same(getattr(loaded, part), tiny_half(pipeline, part)) for part in PARTS)
    mixed = load_base(
        tmp_path / "x.safetensors", {"vae": torch.float32, "default": torch.float16}, config=sd15_folder
    )
    assert (mixed.unet.dtype, mixed.vae.dtype) == (torch.float16, torch.float32)


def tiny_half(pipeline, part: str) -> nn.Module:
    return getattr(tiny_pipeline("sd15"), part).half()


def test_text_encoders_without_text_model_in_their_names(pipeline, sd15_folder: Path, tmp_path: Path) -> None:
    state = {
        key.replace("transformer.text_model.", "transformer."): v for key, v in ldm_state(pipeline).items()
    }
    torch.save(state, tmp_path / "merged.ckpt")
    assert same(load_base(tmp_path / "merged.ckpt", config=sd15_folder).text_encoder, pipeline.text_encoder)


def _open_clip(kind: type, hidden: int) -> nn.Module:
    torch.manual_seed(hidden)
    config = CLIPTextConfig(
        vocab_size=580, hidden_size=hidden, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, projection_dim=hidden, hidden_act="gelu",
    )  # fmt: skip
    return kind(config).eval()


def test_stable_diffusion_2_has_openclip(pipeline, sd15_folder: Path, tmp_path: Path) -> None:
    config = shutil.copytree(sd15_folder, tmp_path / "config")
    text = _open_clip(CLIPTextModel, 32)
    text.save_pretrained(config / "text_encoder")
    state = {key: v for key, v in ldm_state(pipeline).items() if not key.startswith("cond_stage_model")}
    state |= open_clip_to_ldm(text.state_dict(), "cond_stage_model.model.")
    state["cond_stage_model.model.text_projection"] = torch.zeros(32, 32)
    state["cond_stage_model.model.logit_scale"] = torch.zeros(())
    torch.save(state, tmp_path / "sd2.ckpt")
    assert same(load_base(tmp_path / "sd2.ckpt", config=config).text_encoder, text)


def test_sdxl_has_two_text_encoders(sdxl_folder: Path, tmp_path: Path) -> None:
    source = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    config = shutil.copytree(sdxl_folder, tmp_path / "config")
    second = _open_clip(CLIPTextModelWithProjection, 48)
    second.save_pretrained(config / "text_encoder_2")
    state = {
        **unet_to_ldm(source.unet.state_dict(), 1, 2),
        **vae_to_ldm(source.vae.state_dict(), 2),
        **clip_to_ldm(source.text_encoder.state_dict(), "conditioner.embedders.0.transformer."),
        **open_clip_to_ldm(second.state_dict(), "conditioner.embedders.1.model."),
        "conditioner.embedders.1.model.logit_scale": torch.zeros(()),
    }
    torch.save(state, tmp_path / "xl.ckpt")
    loaded = load_base(tmp_path / "xl.ckpt", config=config)
    assert type(loaded) is StableDiffusionXLPipeline
    assert all(same(getattr(loaded, part), getattr(source, part)) for part in PARTS)
    assert same(loaded.text_encoder_2, second)


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        ("first_stage_model.", r"dream.ckpt has no VAE. Give a VAE beside it with `vae=FILE`"),
        ("cond_stage_model.", "dream.ckpt has no text encoder. Use the complete checkpoint"),
        ("model.diffusion_model.time_embed.0.bias", "unet in dream.ckpt is not complete: time_embedding"),
        (
            "first_stage_model.decoder.conv_in.weight",
            "vae in dream.ckpt is not complete: decoder.conv_in.weight",
        ),
        (
            "cond_stage_model.transformer.text_model.final",
            "text_encoder in dream.ckpt is not complete: .*final",
        ),
    ],
)
def test_missing_parts_and_tensors_are_named(
    dropped: str, words: str, pipeline, sd15_folder, tmp_path
) -> None:
    state = {key: value for key, value in ldm_state(pipeline).items() if not key.startswith(dropped)}
    torch.save(state, tmp_path / "dream.ckpt")
    with pytest.raises(Damaged, match=words):
        load_base(tmp_path / "dream.ckpt", config=sd15_folder)


def test_a_tensor_of_the_wrong_shape_is_named(pipeline, sd15_folder: Path, tmp_path: Path) -> None:
    state = ldm_state(pipeline) | {"model.diffusion_model.time_embed.0.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(Damaged, match=r"time_embedding.linear_1.bias is \(3,\); expected \(128,\)"):
        load_base(tmp_path / "x.ckpt", config=sd15_folder)


def test_another_vae_beside_the_checkpoint(pipeline, ckpt: Path, sd15_folder: Path, tmp_path: Path) -> None:
    other = tiny_vae(seed=7)
    ldm = vae_to_ldm(other.state_dict(), 2)
    vae_only = {key.removeprefix("first_stage_model."): value.contiguous() for key, value in ldm.items()}
    save_file(vae_only, tmp_path / "v.safetensors")
    other.save_pretrained(tmp_path / "vae")
    without = {key: v for key, v in ldm_state(pipeline).items() if not key.startswith("first_stage")}
    torch.save(without, tmp_path / "no_vae.ckpt")
    for base in (ckpt, tmp_path / "no_vae.ckpt"):
        assert same(load_base(base, config=sd15_folder, vae=tmp_path / "v.safetensors").vae, other)
    assert same(load_base(sd15_folder, vae=tmp_path / "vae").vae, other)
    with pytest.raises(WrongKind, match="not a VAE"):
        load_base(ckpt, config=sd15_folder, vae=ckpt)


def test_a_size_nobody_knows_asks_for_configs(ckpt: Path) -> None:
    with pytest.raises(UnknownFile, match="known sizes are Stable Diffusion 1.x, 2.x and XL"):
        load_base(ckpt)


def test_other_files_given_as_base_are_refused(tmp_path: Path, sd15_folder: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, tmp_path / "l.safetensors")
    with pytest.raises(WrongKind, match="l.safetensors is a LoRA .* not a text-to-image checkpoint"):
        load_base(tmp_path / "l.safetensors")
    with pytest.raises(WrongKind, match="unet is a UNet alone"):
        load_base(sd15_folder / "unet")
    nine = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 9, 3, 3)}
    save_file(nine, tmp_path / "inpaint.safetensors")
    with pytest.raises(WrongKind, match="inpainting: it takes an image besides the noise"):
        load_base(tmp_path / "inpaint.safetensors")


def test_folders(sd15_folder: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    assert type(load_base(sd15_folder)) is StableDiffusionPipeline
    loaded = load_base(str(sdxl_folder), torch.bfloat16)
    assert type(loaded) is StableDiffusionXLPipeline and loaded.unet.dtype == torch.bfloat16
    assert load_base(sd15_folder).text_encoder.dtype == torch.float32
    broken = shutil.copytree(sd15_folder, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    with pytest.raises(Damaged, match="cannot be loaded"):
        load_base(broken)
    index = json.loads((broken / "model_index.json").read_text()) | {"_class_name": "FluxPipeline"}
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WrongKind, match="is a FluxPipeline, not a base model"):
        load_base(broken)


def test_a_folder_in_half_precision_only(pipeline, tmp_path: Path) -> None:
    tiny_pipeline("sd15").to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    loaded = load_base(tmp_path / "half")
    assert loaded.unet.dtype == torch.float32 == loaded.text_encoder.dtype
    assert torch.allclose(loaded.unet.conv_in.weight, pipeline.unet.conv_in.weight, atol=1e-3)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing/file.ckpt"])
def test_a_hub_name_without_the_hub_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=f"{name} is no file or folder here, .*hub cannot be reached"):
        load_base(name)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "toonyou_beta6.safetensors").touch()
    with pytest.raises(WeightsError, match="Did you mean .*toonyou_beta6.safetensors?"):
        load_base(tmp_path / "toonyou_beta.safetensors")


def test_a_bundled_name(sd15_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(sd15_folder, tmp_path / "emoji")
    monkeypatch.setattr("stillmotion.request.installed_models._folder", lambda _: tmp_path / "emoji")
    monkeypatch.chdir(tmp_path / "emoji")
    assert type(load_base("emoji")) is StableDiffusionPipeline


PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sd21-v": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
"""The sizes of the published models."""


@pytest.mark.slow
@pytest.mark.parametrize("family", PARAMETERS)
def test_shipped_configs_have_the_sizes_of_the_published_models(family: str) -> None:
    index = json.loads((CONFIGS / family / "model_index.json").read_text())
    for part, count in PARAMETERS[family].items():
        module = make_module(index[part][1], CONFIGS / family / part)
        assert sum(parameter.numel() for parameter in module.parameters()) == count


@pytest.mark.parametrize("family", PARAMETERS)
def test_shipped_configs_name_every_part(family: str) -> None:
    import diffusers

    index = json.loads((CONFIGS / family / "model_index.json").read_text())
    for part, (library, kind) in ((key, value) for key, value in index.items() if isinstance(value, list)):
        assert library is None or any((CONFIGS / family / part).glob("*config.json")), part
        assert library != "diffusers" or hasattr(diffusers, kind)
    schedule = json.loads((CONFIGS / family / "scheduler" / "scheduler_config.json").read_text())
    assert schedule["prediction_type"] == ("v_prediction" if family == "sd21-v" else "epsilon")


@pytest.mark.parametrize(
    ("header", "name", "sheet", "base", "told"),
    [
        (Header({}), "x.ckpt", None, "sd15", "epsilon"),
        (Header({}), "x.ckpt", None, "sd2", "v_prediction"),
        (Header({}), "512-base-ema.ckpt", None, "sd2", "epsilon"),
        (Header({}, extras={"global_step": 875000}), "x.ckpt", None, "sd2", "epsilon"),
        (Header({}, metadata={"modelspec.prediction_type": "v"}), "x.ckpt", None, "sdxl", "v_prediction"),
        (Header({"v_pred": ()}), "x.ckpt", None, "sdxl", "v_prediction"),
        (Header({}), "x.ckpt", 'params:\n  parameterization: "v"\n', "sd15", "v_prediction"),
        (Header({}), "x.ckpt", "params: {}\n", "sd2", "epsilon"),
    ],
)
def test_what_tells_the_prediction_type(header, name, sheet, base, told, tmp_path: Path) -> None:
    if sheet:
        (tmp_path / name).with_suffix(".yaml").write_text(sheet)
    assert detect_prediction(header, tmp_path / name, base).prediction_type == told


def test_marks_of_velocity_and_zero_snr_reach_the_scheduler(pipeline, sd15_folder, tmp_path) -> None:
    marks = {"v_pred": torch.zeros(()), "ztsnr": torch.zeros(())}
    torch.save(ldm_state(pipeline) | marks, tmp_path / "x.ckpt")
    config = load_base(
        tmp_path / "x.ckpt", config=sd15_folder, prediction_type="v_prediction"
    ).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "trailing"


@pytest.mark.parametrize(("family", "pad"), [("sd15", 49407), ("sd21", 0), ("sdxl", 49407)])
def test_tokenizers_of_the_families(family: str, pad: int) -> None:
    tokenizer = single_file.clip_tokenizer(CONFIGS / family / "tokenizer")
    text = (
        "a photo of a Corgi dog, 3d style"  # without "!": where it is the padding, it is token 0 in text too
    )
    expected = [49406, 320, 1125, 539, 320, 31320, 1929, 267, 274, 323, 1844, 49407]
    assert tokenizer(text).input_ids == expected
    assert tokenizer("", padding="max_length").input_ids == [49406, 49407] + [pad] * 75


@pytest.mark.slow
def test_a_stable_diffusion_1_file_of_real_size(tmp_path: Path) -> None:
    """2 GB in half precision, made from our configs; loaded without configs, network or hub."""
    from diffusers import UNet2DConditionModel

    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    noise = torch.randn(2**16).half()

    def tiled(meta: Tensor) -> Tensor:
        return noise.repeat(meta.numel() // len(noise) + 1)[: meta.numel()].reshape(meta.shape).clone()

    states = {}
    for part, kind in parts.items():
        module = make_module(kind.__name__, CONFIGS / "sd15" / part)
        states[part] = {key: tiled(value) for key, value in module.state_dict().items()}
    save_file(
        {
            **unet_to_ldm(states["unet"], 2, 4),
            **{key: value.contiguous() for key, value in vae_to_ldm(states["vae"], 4).items()},
            **clip_to_ldm(states["text_encoder"]),
        },
        tmp_path / "real.safetensors",
    )
    assert (tmp_path / "real.safetensors").stat().st_size > 2.1e9
    loaded = load_base(tmp_path / "real.safetensors", torch.float16)
    for part, state in states.items():
        found = getattr(loaded, part).state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_the_size_a_base_draws_is_told_by_its_configs(sd15_folder, tmp_path):
    assert native_size(sd15_folder) == 8 * 2
    assert native_size(save_single_file(tiny_pipeline("sd15"), tmp_path / "base.safetensors")) == 8 * 2
    for family, side in (("sd15", 512), ("sd21", 512), ("sd21-v", 768), ("sdxl", 1024)):
        assert native_size(shutil.copytree(CONFIGS / family, tmp_path / family)) == side
    copy = shutil.copytree(CONFIGS / "sd15", tmp_path / "unsaid")
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": [64, 96]}))
    assert native_size(copy) == 512
