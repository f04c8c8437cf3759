"""Bases are loaded without touching the process: from threads, without noise, each weight as it is stored."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from test_base_model import ldm_state, same
from tiny import tiny_pipeline
from torch import nn

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.identify import identify
from stillmotion.checkpoints.modules import fill, make_module
from stillmotion.checkpoints.pickles import load_torch
from stillmotion.errors import Damaged, Unsafe, WrongKind


@pytest.fixture(params=["folder", "single file"])
def base(request: pytest.FixtureRequest, sd15_folder: Path, tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    if request.param == "folder":
        return sd15_folder, {}
    save_file(
        {key: value.contiguous() for key, value in ldm_state(tiny_pipeline("sd15")).items()},
        tmp_path / "x.safetensors",
    )
    return tmp_path / "x.safetensors", {"config": sd15_folder}


def test_a_module_made_in_another_thread_has_its_storage(base: tuple[Path, dict[str, Path]]) -> None:
    path, options = base
    originals = nn.Module.register_parameter, nn.Module.register_buffer, nn.init.normal_, torch.linspace
    on_meta, done = [], threading.Event()

    def user() -> None:
        while not done.is_set():
            on_meta.append(nn.Linear(2, 2).weight.is_meta)
            on_meta.append(nn.Module.register_parameter is not originals[0])

    def load() -> None:
        for _ in range(3):
            parts = load_base(path, **options).components.values()
            on_meta.extend(p.is_meta for m in parts if isinstance(m, nn.Module) for p in m.parameters())

    watching = threading.Thread(target=user)
    loading = [threading.Thread(target=load) for _ in range(2)]
    for thread in (watching, *loading):
        thread.start()
    for thread in loading:
        thread.join()
    done.set()
    watching.join()
    assert len(on_meta) > 100 and not any(on_meta)
    assert originals == (
        nn.Module.register_parameter,
        nn.Module.register_buffer,
        nn.init.normal_,
        torch.linspace,
    )


def _process_state() -> tuple[object, ...]:
    loggers = {
        name: (item.level, item.disabled, tuple(item.handlers), tuple(item.filters))
        for name in (None, "diffusers", "transformers", "stillmotion", "py.warnings")
        if (item := logging.getLogger(name))
    }
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        tuple(torch.serialization.get_safe_globals()),
        list(warnings.filters),
        loggers,
        dict(os.environ),
    )


def test_a_load_leaves_the_process_as_it_was(
    base: tuple[Path, dict[str, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    path, options = base
    before = _process_state()
    with warnings.catch_warnings(record=True) as caught:
        load_base(path, torch.bfloat16, **options)
    assert _process_state() == before
    assert (capfd.readouterr(), caught) == (("", ""), [])
    torch.rand(1)
    assert _process_state() != before  # a change would be seen


def test_the_text_encoders_of_sdxl_do_not_set_the_default_dtype(
    sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: pytest.fail(f"default dtype {dtype}"))
    loaded = load_base(sdxl_folder, torch.float16)
    monkeypatch.undo()
    plain = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    assert all(
        same(getattr(loaded, part), getattr(plain, part).half())
        for part in ("unet", "text_encoder", "text_encoder_2", "vae")
    )
    assert loaded.config["force_zeros_for_empty_prompt"] == plain.config["force_zeros_for_empty_prompt"]


def test_a_folder_is_what_diffusers_loads(sd15_folder: Path) -> None:
    ours, plain = load_base(sd15_folder), StableDiffusionPipeline.from_pretrained(sd15_folder)
    assert all(same(getattr(ours, part), getattr(plain, part)) for part in ("unet", "vae", "text_encoder"))
    assert ours.scheduler.config == plain.scheduler.config
    assert ours.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    buffers = dict(ours.text_encoder.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in plain.text_encoder.named_buffers())
    assert not ours.unet.training and all(p.requires_grad for p in ours.unet.parameters())


def test_vaes_from_before_attention_was_renamed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    made.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    save_file(state, file)
    assert any(".query." in key for key in state)
    pipeline = load_base(_folder_with_vae(tmp_path / "base", tmp_path))
    assert same(pipeline.vae, made)


def _folder_with_vae(folder: Path, vae: Path) -> Path:
    pipeline = tiny_pipeline("sd15")
    pipeline.vae = AutoencoderKL.from_pretrained(vae)
    pipeline.save_pretrained(folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(
        (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    return folder


def test_classes_and_configs_that_are_none_end_in_a_sentence(sd15_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongKind, match="is a FluxTransformer2DModel; known are UNet2DConditionModel"):
        make_module("FluxTransformer2DModel", sd15_folder / "unet")
    (tmp_path / "config.json").write_text('{"hidden_size": "wide", "num_attention_heads": 3}')
    with pytest.raises(Damaged, match="config.json does not describe a CLIPTextModel"):
        make_module("CLIPTextModel", tmp_path)


def test_a_weight_that_nothing_gives_is_named(sd15_folder: Path) -> None:
    module = make_module("CLIPTextModel", sd15_folder / "text_encoder")
    weights = tiny_pipeline("sd15").text_encoder.state_dict()
    module.register_buffer("left", torch.empty(2, device="meta"), persistent=False)
    with pytest.raises(Damaged, match="left is neither stored nor computed"):
        fill(module, weights, torch.float32, "text_encoder", "x")


JOBS = [
    (9, "inpainting"),
    (8, "instruct-pix2pix"),
    (7, "upscaling"),
    (5, "depth-to-image"),
    (6, "6 channels"),
]


@pytest.mark.parametrize(("channels", "job"), JOBS)
def test_models_of_other_jobs_are_named_and_refused(
    channels: int, job: str, sd15_folder: Path, tmp_path: Path
) -> None:
    unet = "model.diffusion_model."
    state = {
        f"{unet}input_blocks.0.0.weight": torch.zeros(320, channels, 3, 3),
        f"{unet}out.2.weight": torch.zeros(4, 320, 3, 3),
        f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(640, 1024),
    }
    save_file(state, tmp_path / "x.safetensors")
    found = identify(tmp_path / "x.safetensors")
    assert job in (found.family or "") and "use the plain checkpoint" in found.usage
    with pytest.raises(WrongKind, match=f"x.safetensors is .*{job}"):
        load_base(tmp_path / "x.safetensors")
    folder = shutil.copytree(sd15_folder, tmp_path / "base")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": channels}))
    with pytest.raises(WrongKind, match=f"base is for .*{job}"):
        load_base(folder)


def test_a_hostile_pickle_in_a_folder_does_not_run(sd15_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "base")
    (folder / "text_encoder" / "model.safetensors").unlink()
    command = f"touch {tmp_path / 'ran'}".encode()
    program = b"\x80\x02cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(program)
    with pytest.raises(Unsafe, match="wants to run code .*posix.system") as refused:
        load_base(folder)
    assert "weights_only" not in str(refused.value) and not (tmp_path / "ran").exists()


def test_pickles_are_read_in_threads(tmp_path: Path) -> None:
    """The stand-ins of one thread are not taken away by another."""
    torch.save({"a": nn.ParameterDict({"x": torch.ones(2)})}, tmp_path / "x.pt")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_torch(tmp_path / "x.pt"), range(40)))
    assert all(torch.equal(each["a"]["x"], torch.ones(2)) for each in found)


def test_the_first_load_of_a_process_prints_nothing(sd15_folder: Path) -> None:
    """And what transformers logs after it is heard."""
    code = f"from stillmotion.checkpoints.base_model import load_base; load_base({str(sd15_folder)!r})"
    after = "import transformers.utils.logging as t; t.get_logger('transformers.x').warning('still heard')"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_VERBOSITY")}
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", f"{code}; {after}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    assert len(ran.stderr.splitlines()) == 1 and "still heard" in ran.stderr


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("adaln_single.linear.weight", "PixArt"),
    ],
)
def test_models_without_a_unet_are_named(key: str, words: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(8, 8), "text_model.x": torch.zeros(8)}, tmp_path / "x.safetensors")
    with pytest.raises(WrongKind, match=f"x.safetensors is a model of another architecture .{words}"):
        load_base(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_encoder", "num_hidden_layers", 2**40),
        ("text_encoder", "max_position_embeddings", 2**40),
        ("vae", "layers_per_block", 10**6),
        ("unet", "block_out_channels", [32] * 100_000),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_it_is_made(
    part: str, field: str, value: object, sd15_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "base")
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(Damaged, match=f"config.json does not describe .*{field}"):
        load_base(folder)
