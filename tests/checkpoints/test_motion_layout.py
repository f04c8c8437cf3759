"""Motion weights between layouts: invertible for every family, strict, and the same as diffusers has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillmotion.checkpoints.motion_detect import (
    adapter_config,
    family_from_adapter_config,
    family_of,
    measure,
)
from stillmotion.checkpoints.motion_keys import FROM_DIFFUSERS, POSITIONS, TO_DIFFUSERS, layout_of
from stillmotion.checkpoints.motion_layout import from_canonical, rename, to_canonical
from stillmotion.errors import Damaged, Mismatch, UnknownFile
from stillmotion.motion.config import MotionConfig
from stillmotion.motion.families import FAMILIES
from stillmotion.motion.positions import sinusoid

LAYOUTS = ("animatediff", "diffusers", "hotshot")


def small(family: str) -> MotionConfig:
    """A family with a fortieth of its channels."""
    spec = FAMILIES[family].config
    return replace(
        spec, channels=tuple(c // (40 if c % 40 == 0 else 16) for c in spec.channels), norm_groups=8
    )


def weights(spec: MotionConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in spec.shapes().items()}
    if spec.conv_in:
        state["conv_in.weight"] = torch.randn(spec.channels[0], spec.conv_in, 3, 3, generator=generator)
        state["conv_in.bias"] = torch.randn(spec.channels[0], generator=generator)
    return state


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@st.composite
def specs(draw: st.DrawFn) -> MotionConfig:
    blocks = draw(st.integers(1, 3))
    return MotionConfig(
        "any",
        channels=tuple(draw(st.sampled_from((2, 4, 8))) for _ in range(blocks)),
        layers=tuple(draw(st.integers(1, 2)) for _ in range(blocks)),
        heads=(1,) * blocks,
        mid=draw(st.booleans()),
        positions=draw(st.integers(1, 40)),
        norm_groups=1,
    )


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(specs(), st.sampled_from(LAYOUTS), st.sampled_from((torch.float32, torch.float16, torch.bfloat16)))
def test_there_and_back_for_any_shape(spec: MotionConfig, layout, dtype: torch.dtype) -> None:
    state = weights(spec, dtype=dtype)
    file = from_canonical(state, spec, layout)
    assert layout_of(file) == layout
    assert equal(to_canonical(file), state)
    assert equal(from_canonical(to_canonical(file), spec, layout), file)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_for_every_family(family: str, layout) -> None:
    spec = small(family)
    state = weights(spec)
    file = from_canonical(state, spec, layout)
    assert equal(to_canonical(file), state)
    assert equal(from_canonical(to_canonical(file), spec, layout), file)


def test_the_canonical_shapes_are_those_of_the_modules() -> None:
    from stillmotion.motion.module import MotionModules

    spec = small("sd15-v2")
    state = MotionModules(spec).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == spec.shapes()
    assert len(TO_DIFFUSERS) == 26 == len(FROM_DIFFUSERS)


def test_animatelcm_files_have_no_tables_and_the_others_do() -> None:
    for family, length in (("animatelcm", None), ("sd15-v1", 24), ("sd15-v2", 32), ("hotshot-xl", 24)):
        spec = small(family)
        tables = {
            v.shape[1] for k, v in from_canonical(weights(spec), spec, "animatediff").items() if ".pe" in k
        }
        assert tables == ({length} if length else set())
    lcm = small("animatelcm")
    assert (
        from_canonical(weights(lcm), lcm)[
            "mid_block.motion_modules.0.transformer_blocks.0.pos_embed.pe"
        ].shape[1]
        == 64
    )


def _with_tables(spec: MotionConfig, first: float, second: float) -> dict[str, Tensor]:
    """A file in the original layout whose tables are the formula plus something."""
    file = from_canonical(weights(spec), spec, "animatediff")
    for key in file:
        if key.endswith(POSITIONS):
            file[key] = file[key] + (first if key.endswith(POSITIONS[0]) else second)
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_altered_tables_are_honoured(layout) -> None:
    spec = small("sd15-v2")
    canonical = to_canonical(_with_tables(spec, 0.5, 0.5))
    assert sum(key.endswith(POSITIONS) for key in canonical) == 2 * 21
    assert equal(to_canonical(from_canonical(canonical, spec, layout)), canonical)


def test_rounding_of_a_table_is_not_an_alteration() -> None:
    spec = small("sd15-v1")
    file = _with_tables(spec, 1e-6, 0.0)
    half = {key: value.half() for key, value in file.items()}
    for state in (file, half):
        assert not any(key.endswith(POSITIONS) for key in to_canonical(state))


def test_two_different_tables_fit_no_diffusers_folder() -> None:
    spec = small("sd15-v2")
    canonical = to_canonical(_with_tables(spec, 0.5, 0.0))
    with pytest.raises(Mismatch, match="different positional tables"):
        from_canonical(canonical, spec, "diffusers")
    assert equal(to_canonical(from_canonical(canonical, spec, "animatediff")), canonical)


def test_a_whole_unet_gives_its_motion() -> None:
    spec = small("sd15-v3")
    state = weights(spec)
    image = {
        "conv_in.weight": torch.zeros(8, 4, 3, 3),
        "time_embedding.linear_1.bias": torch.zeros(8),
        "down_blocks.0.resnets.0.norm1.weight": torch.zeros(8),
        "mid_block.attentions.0.norm.weight": torch.zeros(8),
    }
    assert equal(to_canonical({**from_canonical(state, spec, "animatediff"), **image}), state)
    assert equal(to_canonical({**from_canonical(state, spec, "diffusers"), **image}), state)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("down_blocks.0.motion_modules.0.temporal_transformer.surprise.weight", "has no tensor .*surprise"),
        (
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.1.norms.0.weight",
            "has no tensor",
        ),
        ("something.else", "something.else, which belongs to no motion module"),
    ],
)
def test_a_tensor_that_nobody_knows_is_named(extra: str, words: str) -> None:
    spec = small("sd15-v3")
    with pytest.raises(UnknownFile, match=words):
        to_canonical({**from_canonical(weights(spec), spec, "animatediff"), extra: torch.zeros(1)})


def test_incomplete_and_misshapen_weights_are_refused() -> None:
    spec = small("sd15-v3")
    state = weights(spec)
    name = "up_blocks.3.motion_modules.2.temporal_transformer.proj_out.bias"
    with pytest.raises(Damaged, match=f"{name} is missing"):
        from_canonical({key: value for key, value in state.items() if key != name}, spec)
    with pytest.raises(Mismatch, match=r"proj_out.bias is \(3,\)"):
        from_canonical(state | {name: torch.zeros(3)}, spec)
    with pytest.raises(UnknownFile, match="has no tensor mid_block"):
        from_canonical(
            state | {"mid_block.motion_modules.0.temporal_transformer.norm.bias": torch.zeros(3)}, spec
        )
    with pytest.raises(UnknownFile, match="no motion modules"):
        to_canonical({"a": torch.zeros(1)})


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "pia"])
def test_diffusers_makes_the_same_of_an_original_file(family: str) -> None:
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    spec = small(family)
    original, ours = (from_canonical(weights(spec), spec, layout) for layout in ("animatediff", "diffusers"))
    theirs = convert_animatediff_checkpoint_to_diffusers(original)
    assert equal({key: value for key, value in ours.items() if "pos_embed" not in key}, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_adapter_of_our_config_takes_our_weights(family: str) -> None:
    from diffusers import MotionAdapter

    spec = small(family)
    config = adapter_config(spec)
    adapter = MotionAdapter.from_config(config)
    tables = {
        key: value.clone() for key, value in adapter.state_dict().items() if key.endswith("pos_embed.pe")
    }
    file = from_canonical(weights(spec), spec)
    assert {key: value.shape for key, value in file.items()} == {
        key: value.shape for key, value in adapter.state_dict().items()
    }
    assert all(torch.allclose(file[key], table, atol=1e-5) for key, table in tables.items())
    adapter.load_state_dict(file, strict=True)
    assert adapter.config.motion_max_seq_length == spec.positions


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("animatelcm", "lightning")])
def test_adapter_config_there_and_back(family: str) -> None:
    assert family_from_adapter_config(adapter_config(FAMILIES[family].config)) == FAMILIES[family]


def test_old_adapter_configs_are_read() -> None:
    """As guoyww/animatediff-motion-adapter-v1-5-2 has it, with keys that are ignored today."""
    old = {
        "_class_name": "MotionAdapter",
        "_diffusers_version": "0.23.0.dev0",
        "block_out_channels": [320, 640, 1280, 1280],
        "motion_activation_fn": "geglu",
        "motion_attention_bias": False,
        "motion_cross_attention_dim": None,
        "motion_layers_per_block": 2,
        "motion_max_seq_length": 32,
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": 32,
        "motion_num_attention_heads": 8,
        "use_motion_mid_block": True,
    }
    assert family_from_adapter_config(old) == FAMILIES["sd15-v2"]
    assert family_from_adapter_config(old, "AnimateLCM").name == "animatelcm"
    with pytest.raises(UnknownFile, match="motion_transformer_layers_per_block = 2"):
        family_from_adapter_config(old | {"motion_transformer_layers_per_block": 2})


def test_specs_that_no_adapter_can_hold() -> None:
    with pytest.raises(Mismatch, match="mirrors its up path"):
        adapter_config(replace(small("sd15-v3"), up=((8, 8), (8,), (8,), (8,))))
    with pytest.raises(Mismatch, match="two attentions"):
        adapter_config(replace(small("sd15-v3"), attentions=1))


def test_an_up_path_of_its_own_is_measured() -> None:
    spec = replace(small("sd15-v3"), channels=(8, 16), layers=(1, 1), heads=(8, 8), up=((16, 16), (8, 8, 8)))
    found, _ = family_of(measure(spec.shapes(), "animatediff"), {}, {})
    assert found.config.up == spec.up and found.config.shapes() == spec.shapes()
    assert equal(to_canonical(from_canonical(weights(spec), spec, "animatediff")), weights(spec))


def test_names_can_be_converted_without_tensors() -> None:
    spec = small("hotshot-xl")
    file = from_canonical(weights(spec), spec, "hotshot")
    renamed = rename({key: tuple(value.shape) for key, value in file.items()}, "hotshot")
    assert renamed.items() >= spec.shapes().items()
    assert any("temporal_attentions" in key and key.endswith("positional_encoding") for key in file)


def test_the_table_is_the_formula_of_the_paper() -> None:
    spec = small("sd15-v1")
    file = from_canonical(weights(spec), spec, "animatediff")
    table = file[f"down_blocks.0.motion_modules.0.temporal_transformer.{POSITIONS[1]}"]
    assert table.shape == (1, 24, 8) and torch.equal(table[0], sinusoid(24, 8))
    assert table[0, 5, 2].item() == pytest.approx(
        torch.sin(torch.tensor(5 * 10000 ** (-2 / 8))).item(), abs=1e-6
    )
