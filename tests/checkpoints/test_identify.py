"""What files are, by keys and shapes alone; and the sentences for those in the wrong place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from examples import KINDS, checkpoint, motion, whole_unet
from stillmotion.checkpoints.compatibility import check_compatible, require_kind
from stillmotion.checkpoints.file_kinds import KINDS as TITLES
from stillmotion.checkpoints.files import Header
from stillmotion.checkpoints.identify import call_name, identify
from stillmotion.checkpoints.motion_detect import METADATA_KEY, family_to_json
from stillmotion.errors import Damaged, Mismatch, UnknownFile, WrongKind
from stillmotion.motion.families import FAMILIES

SD15_UNET = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768}
SDXL_UNET = {"block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_told(name: str) -> None:
    header, kind, family, base = KINDS[name]
    found = identify(header)
    assert (found.kind, found.family, found.base) == (kind, family, base)


def test_examples_cover_every_kind_but_folders() -> None:
    assert {kind for _, kind, _, _ in KINDS.values()} == set(TITLES) - {"pipeline", "unknown"}


@pytest.mark.parametrize(
    ("family", "tensors"),
    [("sd15-v1", 560), ("sd15-v2", 588), ("sdxl-beta", 420), ("hotshot-xl", 420), ("pia", 562)],
)
def test_examples_have_the_sizes_of_the_real_files(family: str, tensors: int) -> None:
    assert len(motion(family)) == tensors
    assert len(motion("animatelcm", positions=None)) == 546


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("animatelcm", "lightning")])
def test_a_file_of_a_family_gives_its_row(family: str) -> None:
    assert identify(motion(family)).spec == FAMILIES[family]


def test_lightning_and_lcm_are_told_from_v2_by_name_only_and_say_so() -> None:
    header = motion("sd15-v2", "diffusers")
    assert identify(header, "x").family == "sd15-v2" and "Lightning" in identify(header, "x").notes[0]
    lightning = identify(
        header, "owner/AnimateDiff-Lightning/animatediff_lightning_8step_diffusers.safetensors"
    )
    assert lightning.family == "lightning" and lightning.spec.sampling.num_inference_steps == 8
    assert "because of the file's name" in lightning.notes[0]
    assert identify(header, "wangfuyun/AnimateLCM").family == "animatelcm"


def test_a_name_does_not_make_lightning_of_another_shape() -> None:
    assert identify(motion("sd15-v3"), "my_lightning_lcm.ckpt").family == "sd15-v3"
    assert identify(motion("sdxl-beta"), "sdxl_lightning.ckpt").family == "sdxl-beta"


def test_the_name_a_path_stands_for(tmp_path: Path) -> None:
    cached = tmp_path / "models--ByteDance--AnimateDiff-Lightning" / "snapshots" / "0af" / "x.safetensors"
    assert "Lightning" in call_name(cached)
    assert call_name(Path("/home/lightning/models/v2.ckpt")) == "models/v2.ckpt"


def test_a_whole_unet_is_motion_and_says_so() -> None:
    assert any("whole UNet" in note for note in identify(whole_unet("sd15-v1")).notes)


def test_a_family_in_our_metadata_wins() -> None:
    spec = FAMILIES["sd15-v2"].updated(name="my-motion", heads=(4, 4, 4, 4), fps=12.0)
    header = motion("sd15-v2", "diffusers")
    header.metadata = {METADATA_KEY: family_to_json(spec)}
    assert identify(header).spec == spec
    header.metadata = {METADATA_KEY: family_to_json(FAMILIES["sdxl-beta"])}
    with pytest.raises(Damaged, match="header says sdxl-beta"):
        identify(header)
    header.metadata = {METADATA_KEY: '{"name": "x", "colour": 3}'}
    with pytest.raises(Mismatch, match="another version of stillmotion: unknown colour"):
        identify(header)


def test_a_shape_of_its_own_is_custom() -> None:
    spec = replace(
        FAMILIES["sd15-v3"].config, name="custom", channels=(48, 96), layers=(1, 2), heads=(8, 8), mid=False
    )
    found = identify(Header(spec.shapes(), name="mine.safetensors"))
    shape = found.spec.config
    assert found.family == "custom" and found.base == "custom"
    assert (shape.channels, shape.layers, shape.mid) == (
        (48, 96),
        (1, 2),
        False,
    )
    assert "assumed" in found.notes[0]


def test_missing_modules_are_named() -> None:
    header = Header({k: v for k, v in motion("sd15-v3").items() if "down_blocks.1." not in k}, name="x")
    with pytest.raises(UnknownFile, match=r"missing in down_blocks\.1"):
        identify(header)


def test_what_is_unknown_says_what_was_looked_for() -> None:
    found = identify(Header({"layers.0.weight": (3, 3), "head.bias": (2,)}, name="bert.bin"))
    text = "\n".join(found.describe())
    assert (
        not found.known and "not a file we know" in text and "motion modules" in text and "head.bias" in text
    )
    assert identify(Header({}, name="empty")).kind == "unknown"


@pytest.mark.parametrize("name", KINDS)
def test_a_person_reads_what_it_is_and_how_to_use_it(name: str) -> None:
    header = KINDS[name][0]
    lines = identify(header).describe()
    assert lines[0].startswith(f"{header.name}: a") or lines[0].startswith(f"{header.name}: ")
    assert 2 <= len(lines) <= 8 and any(line.startswith("  use") for line in lines)


def test_a_pipeline_folder(sd15_folder: Path, tmp_path: Path) -> None:
    found = identify(sd15_folder)
    assert found.kind == "pipeline" and found.family == "StableDiffusionPipeline"
    assert found.describe()[-1].endswith("--motion MOTION")


def test_a_pipeline_folder_with_a_card_and_motion_inside(sd15_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd15_folder, tmp_path / "emoji")
    (folder / "motion").mkdir()
    card = {"family": "emoji", "defaults": {"frames": 16, "scheduler": "ddim"}}
    (folder / "stillmotion.json").write_text(json.dumps(card))
    assert identify(folder).describe() == [
        "emoji: a model in a diffusers folder (StableDiffusionPipeline)",
        "  family     the bundled emoji model",
        "  motion     inside, in motion/",
        "  settings   frames 16, scheduler ddim",
        '  use        stillmotion animate "PROMPT" --base emoji',
    ]


def test_a_file_on_disk(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "e.safetensors")
    assert identify(tmp_path / "e.safetensors").describe()[1] == "  fits       Stable Diffusion 1.x"


@pytest.mark.parametrize(
    ("example", "wanted", "words"),
    [
        ("domain adapter", "motion", "v3_sd15_adapter.ckpt is the v3 domain adapter .* not a motion module"),
        ("motion lora", "lora", "v2_lora_PanLeft.ckpt is a motion LoRA .* not a LoRA for the image model"),
        (
            "sd15 checkpoint",
            "motion",
            "toonyou_beta6.safetensors is a text-to-image checkpoint .* not a motion",
        ),
        ("v2", "checkpoint", "mm.ckpt is a motion module, family sd15-v2 .* not a text-to-image checkpoint"),
        ("animatelcm i2v", "motion", "image encoder"),
        ("sparsectrl rgb", "motion", "SparseCtrl"),
    ],
)
def test_a_file_in_the_wrong_place_gets_one_sentence_and_its_use(
    example: str, wanted: str, words: str
) -> None:
    found = identify(KINDS[example][0])
    with pytest.raises(WrongKind, match=words) as caught:
        require_kind(found, wanted)
    assert "Its use: " in str(caught.value)
    require_kind(found, found.kind)


def test_an_unknown_file_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(UnknownFile, match="bert.bin is not a file we know .*looked for motion modules"):
        require_kind(identify(Header({"x": (3,)}, name="bert.bin")), "motion")


def test_modules_for_another_base_are_refused_with_a_way_out() -> None:
    with pytest.raises(Mismatch) as caught:
        check_compatible(
            FAMILIES["sdxl-beta"].config, SD15_UNET, "mm_sdxl_v10_beta.ckpt", "toonyou_beta6.safetensors"
        )
    assert str(caught.value) == (
        "mm_sdxl_v10_beta.ckpt is a motion module for Stable Diffusion XL (320, 640, 1280) but "
        "toonyou_beta6.safetensors is Stable Diffusion 1.x (320, 640, 1280, 1280). "
        "Use an SD 1.5 module such as v3_sd15_mm.ckpt, or an SDXL checkpoint."
    )
    with pytest.raises(Mismatch, match="Use an SDXL module such as mm_sdxl_v10_beta.ckpt"):
        check_compatible(FAMILIES["sd15-v3"].config, SDXL_UNET)
    with pytest.raises(Mismatch, match=r"with \(1, 1, 1\) layers, not \(2, 2, 2\)"):
        check_compatible(FAMILIES["sdxl-beta"].config, SDXL_UNET | {"layers_per_block": 1})


def test_modules_that_fit_pass() -> None:
    check_compatible(FAMILIES["sd15-v1"].config, SD15_UNET)
    check_compatible(FAMILIES["sd15-v2"].config, SD15_UNET | {"cross_attention_dim": 1024})
    check_compatible(FAMILIES["hotshot-xl"].config, SDXL_UNET)


def test_parts_that_a_checkpoint_lacks_are_noted() -> None:
    assert identify(checkpoint(parts=("text",))).notes == ("It has no VAE.",)
    assert identify(checkpoint(parts=())).notes == ("It has no VAE.", "It has no text encoder.")
