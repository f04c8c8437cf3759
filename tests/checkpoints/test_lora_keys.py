"""Names of LoRAs: each layout comes back as it was, each name people have leads to its layer."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from loras import assert_same, motion_parts, random_delta, random_parts
from tiny import tiny_motion, tiny_pipeline, tiny_unet
from torch import nn

from stillmotion.checkpoints.ldm.keys import UNET, unet_names
from stillmotion.checkpoints.lora.kohya_names import WORDS, from_ldm, kohya_to_path, path_to_kohya
from stillmotion.checkpoints.lora.layouts import parse, write
from stillmotion.checkpoints.lora.lora_layers import resolve_layer
from stillmotion.errors import Damaged, UnknownFile, WrongKind
from stillmotion.lora.deltas import LayerDelta
from stillmotion.motion.families import FAMILIES
from stillmotion.motion.module import MotionModules

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEMPORAL = "down_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0"
SHAPES = {
    "sd15": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
pipeline = cache(tiny_pipeline)


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.randn(2, 2) for name in names}


def places(*keys: str) -> set[tuple[str, str]]:
    return {(part, path) for part, layers in parse(tensors(*keys)).items() for path in layers}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers"])
@pytest.mark.parametrize("alpha", [lambda p: None, lambda p: 1.5, lambda p: 4.0 if "to_k" in p else None])
def test_every_layout_comes_back_as_it_was(kind, layout, alpha) -> None:
    parts = random_parts(pipeline(kind), alpha=alpha, convolutions=True)
    assert_same(parse(*write(parts, layout)), parts)


@pytest.mark.parametrize("magnitude", [None, "rows", "columns"])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full"])
def test_kohya_holds_every_algorithm(algorithm, magnitude) -> None:
    alpha = None if algorithm == "full" else 2.0
    parts = random_parts(pipeline("sdxl"), alpha=lambda p: alpha, algorithm=algorithm, magnitude=magnitude)
    assert_same(parse(*write(parts, "kohya")), parts)


def test_tucker_cores_and_doras_of_convolutions_come_back() -> None:
    layer = nn.Conv2d(4, 6, 3)
    tucker = {"unet": {"conv_in": random_delta(layer, tucker=True, alpha=1.0)}}
    assert_same(parse(*write(tucker, "kohya")), tucker)
    dora = {"unet": {"conv_in": random_delta(layer, magnitude="rows", alpha=1.0)}}
    state, metadata = write(dora, "peft")
    assert state["unet.conv_in.lora_magnitude_vector"].shape == (1, 6, 1, 1)
    assert_same(parse(state, metadata), dora)
    loha = {
        "w1_a": torch.randn(2, 6),
        "w1_b": torch.randn(2, 4),
        "t1": torch.randn(2, 2, 3, 3),
        "w2_a": torch.randn(2, 6),
        "w2_b": torch.randn(2, 4),
        "t2": torch.randn(2, 2, 3, 3),
    }
    cores = {"unet": {"conv_in": LayerDelta("loha", loha, 1.0)}}
    assert_same(parse(*write(cores, "kohya")), cores)


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers", "animatediff"])
def test_motion_loras_come_back_in_every_layout(layout) -> None:
    parts = motion_parts(tiny_motion())
    state, metadata = write(parts, layout)
    assert_same(parse(state, metadata), parts)
    place = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    expected = {
        "animatediff": f"{place}.processor.to_q_lora.down.weight",
        "peft": "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "diffusers": "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        "kohya": f"lora_unet_{place.replace('.', '_')}_to_q.lora_down.weight",
    }
    assert expected[layout] in state


def test_a_motion_lora_of_v2_has_the_336_tensors_of_the_original() -> None:
    with torch.device("meta"):
        parts = motion_parts(MotionModules(FAMILIES["sd15-v2"]), rank=64)
    state, _ = write(parts, "animatediff")
    assert len(state) == 336 and sum(tensor.numel() for tensor in state.values()) == 19_333_120
    assert {part: set(layers) for part, layers in parse(state).items()} == {"motion": set(parts["motion"])}


def test_the_domain_adapter_comes_back_in_the_original_layout() -> None:
    parts = random_parts(pipeline("sd15"), ("unet",))
    state, metadata = write(parts, "animatediff")
    assert f"{ATTENTION}.processor.to_out_lora.up.weight" in state
    assert_same(parse(state, metadata), parts)


def test_the_original_layout_has_no_alpha_so_it_goes_into_up() -> None:
    parts = random_parts(pipeline("sd15"), ("unet",), alpha=lambda p: 1.0)
    for path, found in parse(*write(parts, "animatediff"))["unet"].items():
        wanted = parts["unet"][path]
        shape = (wanted.tensors["up"].shape[0], wanted.tensors["down"].shape[1])
        assert found.alpha is None
        torch.testing.assert_close(found.dense(shape), wanted.dense(shape))


@pytest.mark.parametrize(
    ("layout", "options", "words"),
    [
        ("peft", {"algorithm": "loha"}, r"peft layout cannot hold a loha change \(.*attn1\.to_q\).*kohya"),
        ("animatediff", {"algorithm": "lokr"}, "animatediff layout cannot hold a lokr"),
        ("diffusers", {"magnitude": "rows"}, "diffusers layout cannot hold a DoRA"),
        ("animatediff", {"magnitude": "rows"}, "animatediff layout cannot hold a DoRA"),
        ("peft", {"magnitude": "columns"}, "a DoRA with a length for each input"),
        ("nonsense", {}, "no layout 'nonsense': choose one of kohya, peft"),
    ],
)
def test_what_a_layout_cannot_express_is_said(layout, options, words) -> None:
    layer = nn.Linear(8, 6)
    with pytest.raises(WrongKind, match=words):
        write({"unet": {f"{ATTENTION}.to_q": random_delta(layer, **options)}}, layout)


@pytest.mark.parametrize("layout", ["peft", "diffusers", "animatediff", "kohya"])
@pytest.mark.parametrize("name", ["bias", "up_bias", "whole_bias"])
def test_no_layout_drops_a_change_of_the_bias(layout, name) -> None:
    layer = nn.Linear(8, 6)
    plain = random_delta(layer)
    parts = {"unet": {f"{ATTENTION}.to_q": LayerDelta("lora", {**plain.tensors, name: torch.randn(6)})}}
    if layout == "kohya" and name != "whole_bias":
        assert_same(parse(*write(parts, layout)), parts)
        return
    with pytest.raises(WrongKind, match=f"{layout} layout cannot hold a .*bias"):
        write(parts, layout)
    with pytest.raises(WrongKind, match="alpha of 0"):
        write({"unet": {"conv_in": LayerDelta("lora", plain.tensors, 0.0)}}, "kohya")


def test_names_that_would_not_come_back_are_refused() -> None:
    delta = random_delta(nn.Linear(4, 4))
    with pytest.raises(WrongKind, match="animatediff layout cannot hold a layer of the text_encoder"):
        write({"text_encoder": {"text_model.encoder.layers.0.mlp.fc1": delta}}, "animatediff")
    with pytest.raises(WrongKind, match="kohya layout cannot hold a layer of the unet of this name"):
        write({"unet": {"my_own.layer_0": delta}}, "kohya")


@given(st.lists(st.sampled_from([*sorted(WORDS), "0", "12", "attn1", "net", "proj", "ff"]), min_size=1))
def test_flat_names_are_lossless(pieces) -> None:
    flat = path_to_kohya(".".join(pieces))
    assert path_to_kohya(kohya_to_path(flat)) == flat


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layer_of_the_models_has_its_flat_name(kind) -> None:
    networks = [
        tiny_unet(kind),
        tiny_motion(),
        *(m for m in pipeline(kind).components.values() if isinstance(m, nn.Module)),
    ]
    paths = [path for n in networks for path, m in n.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(paths) > 100
    assert [kohya_to_path(path_to_kohya(path)) for path in paths if "quant" not in path] == [
        p for p in paths if "quant" not in p
    ]


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_names_of_their_authors_lead_back_to_every_layer(name) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SHAPES[name])
    paths = [path for path, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    names = unet_names(f"{path}.weight" for path in paths)
    for path in paths:
        theirs = names[f"{path}.weight"].removeprefix(UNET).removesuffix(".weight")
        assert (
            resolve_layer(f"lora_unet_{path_to_kohya(theirs)}")
            == resolve_layer(f"unet.{theirs}")
            == ("unet", path)
        )


@settings(deadline=None)
@given(block=st.integers(0, 2), layer=st.integers(0, 1), up=st.booleans())
def test_names_of_sdxls_authors_count_through_all_blocks(block, layer, up) -> None:
    number = block * 3 + layer + (0 if up else 1)
    blocks, ours = ("output_blocks", "up_blocks") if up else ("input_blocks", "down_blocks")
    assert from_ldm(f"{blocks}.{number}.0.in_layers.2") == f"{ours}.{block}.resnets.{layer}.conv1"
    assert from_ldm(f"{blocks}.{number}.1.proj_in") == f"{ours}.{block}.attentions.{layer}.proj_in"


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ),
        ("lora_unet_input_blocks_3_0_op", ("unet", "down_blocks.0.downsamplers.0.conv")),
        ("lora_unet_output_blocks_2_2_conv", ("unet", "up_blocks.0.upsamplers.0.conv")),
        ("lora_unet_output_blocks_8_0_skip_connection", ("unet", "up_blocks.2.resnets.2.conv_shortcut")),
        (
            "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0",
            ("unet", "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0"),
        ),
        ("lora_unet_middle_block_2_emb_layers_1", ("unet", "mid_block.resnets.1.time_emb_proj")),
        ("lora_unet_input_blocks_0_0", ("unet", "conv_in")),
        ("lora_unet_out_2", ("unet", "conv_out")),
        ("lora_unet_time_embed_0", ("unet", "time_embedding.linear_1")),
        ("lora_unet_label_emb_0_2", ("unet", "add_embedding.linear_2")),
        (
            "lora_unet_down_blocks_0_resnets_1_time_emb_proj",
            ("unet", "down_blocks.0.resnets.1.time_emb_proj"),
        ),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"),
        ),
        (
            "lora_te1_text_model_encoder_layers_11_mlp_fc2",
            ("text_encoder", "text_model.encoder.layers.11.mlp.fc2"),
        ),
        ("lora_te2_text_projection", ("text_encoder_2", "text_projection")),
        ("lycoris_mid_block_attentions_0_proj_in", ("unet", "mid_block.attentions.0.proj_in")),
        (
            "lycoris_text_model_encoder_layers_0_mlp_fc1",
            ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
        ),
        (f"base_model.model.{ATTENTION}.to_q", ("unet", f"{ATTENTION}.to_q")),
        (f"base_model.model.unet.{ATTENTION}.to_q", ("unet", f"{ATTENTION}.to_q")),
        (
            "base_model.model.text_model.encoder.layers.0.mlp.fc1",
            ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
        ),
        ("text_encoder.encoder.layers.0.mlp.fc1", ("text_encoder", "text_model.encoder.layers.0.mlp.fc1")),
        (
            "down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.to_k",
            ("motion", f"{TEMPORAL}.attention_blocks.1.to_k"),
        ),
        (
            "down_blocks.0.temporal_attentions.1.transformer_blocks.0.attention_blocks.1.to_k",
            ("motion", f"{TEMPORAL}.attention_blocks.1.to_k"),
        ),
    ],
)
def test_where_a_layer_belongs(layer, place) -> None:
    assert resolve_layer(layer) == place


@pytest.mark.parametrize(
    ("stem", "place"),
    [
        (f"{ATTENTION}.processor.to_q_lora", ("unet", f"{ATTENTION}.to_q")),
        (f"unet.{ATTENTION}.processor.to_out_lora", ("unet", f"{ATTENTION}.to_out.0")),
        (
            f"{TEMPORAL}.attention_blocks.0.processor.to_out_lora",
            ("motion", f"{TEMPORAL}.attention_blocks.0.to_out.0"),
        ),
        (
            f"{TEMPORAL}.attention_blocks.0.to_out.processor.0_lora",
            ("motion", f"{TEMPORAL}.attention_blocks.0.to_out.0"),
        ),
        (
            f"{TEMPORAL}.attention_blocks.0.to_out.0.lora",
            ("motion", f"{TEMPORAL}.attention_blocks.0.to_out.0"),
        ),
        (
            f"{TEMPORAL}.attention_blocks.0.to_out.0.0.lora",
            ("motion", f"{TEMPORAL}.attention_blocks.0.to_out.0"),
        ),
        (f"{TEMPORAL}.ff.net.0.processor.proj_lora", ("motion", f"{TEMPORAL}.ff.net.0.proj")),
        (f"{TEMPORAL}.ff.net.processor.2_lora", ("motion", f"{TEMPORAL}.ff.net.2")),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora",
            ("text_encoder", "text_model.encoder.layers.0.self_attn.out_proj"),
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer",
            ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"),
        ),
    ],
)
def test_names_of_the_original_and_of_motiondirector(stem, place) -> None:
    assert places(f"{stem}.down.weight", f"{stem}.up.weight") == {place}


def test_names_of_peft_with_and_without_the_adapters_name() -> None:
    for middle in ("", ".default", ".style"):
        keys = tensors(*(f"base_model.model.conv_in.lora_{x}{middle}.weight" for x in "AB"))
        keys[f"base_model.model.conv_in.lora_magnitude_vector{middle}.weight"] = torch.ones(2)
        parts = parse(keys)
        assert parts["unet"]["conv_in"].magnitude.shape == (2, 1)


@pytest.mark.parametrize(
    ("stem", "place"),
    [
        ("diffusion_model.input_blocks.1.1.proj_in", ("unet", "down_blocks.0.attentions.0.proj_in")),
        ("model.diffusion_model.out.2", ("unet", "conv_out")),
        ("unet.base_model.model.conv_in", ("unet", "conv_in")),
        ("base_model.model.base_model.model.conv_in", ("unet", "conv_in")),
        ("base_model.model.module._orig_mod.conv_in", ("unet", "conv_in")),
        ("unet.module.conv_in", ("unet", "conv_in")),
        ("lora_unet.conv_in", ("unet", "conv_in")),
        (
            "lora_te1.text_model.encoder.layers.0.mlp.fc1",
            ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
        ),
        (
            "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
            ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1"),
        ),
        (
            "clip_l.text_model.encoder.layers.0.mlp.fc1",
            ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
        ),
    ],
)
@pytest.mark.parametrize("middle", ["", ".default", ".my.own.style"])
def test_names_of_comfyui_and_nested_peft(stem, place, middle) -> None:
    assert places(f"{stem}.lora_A{middle}.weight", f"{stem}.lora_B{middle}.weight") == {place}


def test_alphas_without_a_change_and_words_are_left_out() -> None:
    keys = tensors("unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight", "bundle_emb.word.clip_l")
    parts = parse(keys | {"lora_unet_conv_out.alpha": torch.ones(())})
    assert {part: list(layers) for part, layers in parts.items()} == {"unet": ["conv_in"]}


def test_alpha_zero_is_no_alpha_in_kohyas_files() -> None:
    keys = {f"lora_unet_conv_in.{name}.weight": torch.randn(2, 2) for name in ("lora_down", "lora_up")}
    assert parse(keys | {"lora_unet_conv_in.alpha": torch.zeros(())})["unet"]["conv_in"].scale() == 1.0


def test_alpha_in_the_header_is_pefts() -> None:
    keys = tensors(*(f"unet.{name}.lora_{x}.weight" for name in ("conv_in", "conv_out") for x in "AB"))
    settings_ = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"conv_out": 3}}
    parts = parse(keys, {"lora_adapter_metadata": json.dumps(settings_)})
    assert {path: delta.alpha for path, delta in parts["unet"].items()} == {
        "conv_in": 8.0,
        "conv_out": 3.0,
    }
    rank_stabilised = settings_ | {"unet.use_rslora": True}
    scale = parse(keys, {"lora_adapter_metadata": json.dumps(rank_stabilised)})["unet"]["conv_in"].scale()
    assert scale == pytest.approx(8 / 2**0.5)
    with pytest.raises(Damaged, match="cannot be read as JSON"):
        parse(keys, {"lora_adapter_metadata": "{"})


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        (["lora_unet_conv_in.oft_diag"], UnknownFile, r"lora_unet_conv_in\.oft_diag, which is of no LoRA"),
        (["lora_unet_norm.v_norm"], UnknownFile, "v_norm"),
        (["base_model.model.conv_in.weight"], UnknownFile, "conv_in.weight"),
        (["unet.conv_in.lora_A.weight"], Damaged, "conv_in: A lora layer has down; it needs down and up"),
        (["lora_unet_conv_in.alpha"], Damaged, "conv_in has no tensors of a change"),
        (
            ["lora_unet_conv_in.diff", "lora_unet_conv_in.lora_up.weight"],
            Damaged,
            "conv_in has full and lora",
        ),
        (["unet.conv_in.lora_A.weight", "conv_in.lora_A.weight"], Damaged, "two LoRAs are mixed"),
        ([f"{TEMPORAL}.nonsense.lora_A.weight"], UnknownFile, "nonsense"),
    ],
)
def test_every_key_is_used_or_named(keys, error, words) -> None:
    state = {key: torch.ones(()) if key.endswith("alpha") else torch.zeros(2, 2) for key in keys}
    with pytest.raises(error, match=words):
        parse(state)
