"""A LoRA on a pipeline and off again: files, parts, weights, motion, and the words where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loras import assert_same, motion_parts, random_delta, random_parts
from safetensors.torch import save_file
from tiny import tiny_lora, tiny_motion, tiny_pipeline, tiny_unet
from torch import Tensor, nn

from stillmotion import Lora, attach, attach_lora
from stillmotion.errors import Damaged, Mismatch, OutputError, UnknownFile, WrongKind

TEMPORAL = "temporal_transformer.transformer_blocks.0.attention_blocks.0"


class Boom(Exception):
    """What goes wrong inside a `with`."""


@torch.no_grad()
def seen(pipeline, frames: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x, text = (torch.randn(frames, *size, generator=generator) for size in ((4, 8, 8), (7, 32)))
    return pipeline.unet(x, 5, text).sample


@torch.no_grad()
def read(pipeline) -> Tensor:
    return pipeline.text_encoder(torch.arange(14).view(2, 7)).last_hidden_state


def moved(pipeline, motion, frames: int = 4) -> Tensor:
    with attach(pipeline.unet, motion, frames):
        return seen(pipeline, frames)


@pytest.fixture
def pipeline():
    return tiny_pipeline()


def style(**options) -> Lora:
    return Lora(random_parts(tiny_pipeline(), **options), "style.safetensors")


def test_it_goes_on_and_comes_off_bit_for_bit(pipeline) -> None:
    before, text, keys = seen(pipeline), read(pipeline), list(pipeline.unet.state_dict())
    with style().attach(pipeline):
        assert not torch.allclose(seen(pipeline), before, atol=1e-2)
        assert not torch.allclose(read(pipeline), text, atol=1e-2)
        assert list(pipeline.unet.state_dict()) == keys
    assert torch.equal(seen(pipeline), before) and torch.equal(read(pipeline), text)


def test_it_comes_off_after_an_exception_and_a_second_time(pipeline) -> None:
    before, keys = seen(pipeline), list(pipeline.unet.state_dict())
    with pytest.raises(Boom), style().attach(pipeline) as attached:
        raise Boom
    attached.detach()
    assert torch.equal(seen(pipeline), before) and list(pipeline.unet.state_dict()) == keys
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_a_part_that_does_not_fit_leaves_the_others_off(pipeline) -> None:
    parts = random_parts(pipeline) | {"text_encoder_2": {"text_projection": random_delta(nn.Linear(4, 4))}}
    with pytest.raises(
        Mismatch, match="second text encoder, which this StableDiffusionPipeline does not have"
    ):
        Lora(parts).attach(pipeline)
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_strength_and_frames_may_change_while_it_is_on(pipeline) -> None:
    lora = style()
    with lora.attach(pipeline, weight=0.5):
        half = seen(pipeline)
    with lora.attach(pipeline) as attached:
        attached.weight, attached.frames = {"unet": 0.5, "text": 0}, 2
        assert (attached.weight.spec, attached.frames) == ({"unet": 0.5, "text": 0.0}, 2)
        assert torch.equal(seen(pipeline), half)


def test_weights_of_parts(pipeline) -> None:
    before, text = seen(pipeline), read(pipeline)
    with style().attach(pipeline, weight="unet:1,text:0"):
        assert torch.equal(read(pipeline), text) and not torch.allclose(seen(pipeline), before, atol=1e-2)
    with style().attach(pipeline, weight="unet:0,text:1"):
        assert torch.equal(seen(pipeline), before) and not torch.allclose(read(pipeline), text, atol=1e-2)


def test_parity_with_the_original_ignores_alpha(pipeline) -> None:
    with_alpha = style(alpha=lambda path: 0.5)
    without = style(alpha=lambda path: None)
    with without.attach(pipeline):
        plain = seen(pipeline)
    with with_alpha.attach(pipeline, lora_alpha="ignore"):
        assert torch.equal(seen(pipeline), plain)
    with with_alpha.attach(pipeline):
        assert not torch.allclose(seen(pipeline), plain, atol=1e-2)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_domain_adapter_adds_up_times_down(suffix, pipeline, tmp_path) -> None:
    state, path = tiny_lora(scheme="processor", rank=4, spread=0.1), tmp_path / f"v3_sd15_adapter{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "animatediff_config": "x"}, path)
    else:
        save_file(state, path)
    merged = tiny_pipeline()
    for key, down in state.items():
        if key.endswith(".down.weight"):
            place, _, part = key.removesuffix("_lora.down.weight").rpartition(".processor.")
            layer = merged.unet.get_submodule(f"{place}.{'to_out.0' if part == 'to_out' else part}")
            layer.weight.data += state[key.replace(".down.weight", ".up.weight")] @ down
    lora = Lora.load(path)
    assert lora.kind.kind == "domain-adapter" and not lora.moves
    with lora.attach(pipeline):
        torch.testing.assert_close(seen(pipeline), seen(merged), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers"])
def test_files_come_back_whole(layout, tmp_path) -> None:
    lora = style(alpha=lambda path: 1.5)
    path = lora.save(tmp_path / "new" / "l.safetensors", layout)
    again = Lora.load(path)
    assert_same(again.parts, lora.parts)
    assert (again.name, again.kind.kind) == ("l.safetensors", "lora")
    half = Lora.load(lora.save(path, layout, torch.float16))
    kinds = {t.dtype for layers in half.parts.values() for f in layers.values() for t in f.tensors.values()}
    assert kinds == {torch.float16} and [file.name for file in path.parent.iterdir()] == ["l.safetensors"]


def test_what_cannot_be_saved_is_said_and_leaves_nothing(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"\.safetensors, not as l\.ckpt"):
        style().save(tmp_path / "l.ckpt")
    with pytest.raises(WrongKind, match="peft layout cannot hold a loha"):
        style(algorithm="loha").save(tmp_path / "l.safetensors", "peft")
    assert list(tmp_path.iterdir()) == []


def test_motion_loras_are_saved_as_the_original_has_them(tmp_path) -> None:
    lora = Lora.load(Lora(motion_parts(tiny_motion())).save(tmp_path / "pan.safetensors"))
    assert (lora.kind.kind, lora.kind.layout, lora.kind.base) == (
        "motion-lora",
        "attention-processor",
        "custom",
    )
    assert lora.moves and lora.parts.keys() == {"motion"}


@pytest.mark.parametrize("layout", ["animatediff", "peft", "diffusers", "kohya"])
def test_a_motion_lora_adds_up_times_down_to_the_motion(layout, pipeline, tmp_path) -> None:
    motion, merged = tiny_motion(), tiny_motion()
    parts = motion_parts(motion)
    for path, delta in parts["motion"].items():
        merged.get_submodule(path).weight.data += delta.tensors["up"] @ delta.tensors["down"]
    lora = Lora.load(Lora(parts).save(tmp_path / "pan.safetensors", layout))
    still, before = seen(pipeline, 4), moved(pipeline, motion)
    with lora.attach(pipeline, motion):
        ours = moved(pipeline, motion)
        assert torch.equal(seen(pipeline, 4), still)
    torch.testing.assert_close(ours, moved(pipeline, merged), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, before, atol=1e-2) and torch.equal(moved(pipeline, motion), before)


def test_a_motion_lora_for_v2_goes_on_v3_without_its_middle(pipeline) -> None:
    parts = motion_parts(tiny_motion(mid=True))
    v3, merged = tiny_motion(mid=False), tiny_motion(mid=False)
    assert any(path.startswith("mid_block") for path in parts["motion"])
    for path, delta in parts["motion"].items():
        if not path.startswith("mid_block"):
            merged.get_submodule(path).weight.data += delta.tensors["up"] @ delta.tensors["down"]
    with Lora(parts).attach(pipeline, v3):
        ours = moved(pipeline, v3)
    torch.testing.assert_close(ours, moved(pipeline, merged), rtol=1e-5, atol=1e-5)


def test_several_motion_loras_add_up(pipeline) -> None:
    motion, merged = tiny_motion(), tiny_motion()
    pan, zoom = (motion_parts(motion, seed) for seed in (1, 2))
    for parts, weight in ((pan, 0.5), (zoom, -0.75)):
        for path, delta in parts["motion"].items():
            change = delta.tensors["up"] @ delta.tensors["down"]
            merged.get_submodule(path).weight.data += weight * change
    with Lora(pan).attach(pipeline, motion, 0.5), Lora(zoom).attach(pipeline, motion, -0.75):
        ours = moved(pipeline, motion)
    torch.testing.assert_close(ours, moved(pipeline, merged), rtol=1e-5, atol=1e-5)


def test_a_motion_lora_needs_motion_that_fits(pipeline) -> None:
    lora = Lora(motion_parts(tiny_motion()), "pan.ckpt")
    with pytest.raises(WrongKind, match=r"pan\.ckpt is a motion LoRA .*no motion here.*`motion=FILE`"):
        lora.attach(pipeline)
    other = tiny_motion(channels=(32, 128))
    with pytest.raises(Mismatch, match=r"pan\.ckpt is a LoRA for .* and does not fit the motion: .*to_q"):
        lora.attach(pipeline, other)


def test_one_call_from_a_file(pipeline, tmp_path) -> None:
    lora = style()
    path = lora.save(tmp_path / "style.safetensors")
    with lora.attach(pipeline, weight=0.5):
        wanted = seen(pipeline)
    for given in (str(path), path, lora):
        with attach_lora(pipeline, given, 0.5):
            assert torch.equal(seen(pipeline), wanted)
    attached = attach_lora(pipeline, path, "0:0,1:1", frames=2)
    changed = seen(pipeline)
    attached.detach()
    assert torch.equal(changed[0], seen(pipeline)[0]) and not torch.equal(changed[1], seen(pipeline)[1])


@pytest.mark.parametrize(
    ("key", "shape", "base", "error", "words"),
    [
        (
            "lora_unet_attn2_to_k.lora_down.weight",
            (8, 2048),
            "sd15",
            Mismatch,
            r"l\.safetensors is a LoRA for Stable Diffusion XL, but the base is Stable Diffusion 1\.x",
        ),
        (
            "lora_unet_conv_in.oft_diag",
            (1, 2, 2),
            None,
            WrongKind,
            "an OFT of an old .*Convert",
        ),
        ("unet.conv_in.vera_lambda_d", (4,), None, WrongKind, "is a VeRA .*Convert it, or merge it"),
        (
            "lora_unet_double_blocks_0_img_attn.lora_down.weight",
            (4, 8),
            None,
            Mismatch,
            "is a LoRA for Flux",
        ),
        (
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            (4, 8),
            None,
            Mismatch,
            "a transformer mod",
        ),
        ("lora_unet_conv_in.lora_down.weight", (0, 4), None, Damaged, r"l\.safetensors: conv_in: .*it needs"),
        ("lora_unet_conv_in.lora_down.weight", (8, 4), None, Exception, "it needs down and up"),
        ("bert.conv_in.weight", (1,), None, UnknownFile, "not a file we know"),
        ("model.diffusion_model.input_blocks.0.0.weight", (320, 4, 3, 3), None, WrongKind, "checkpoint"),
    ],
)
def test_files_that_cannot_be_applied(key, shape, base, error, words, tmp_path: Path) -> None:
    save_file({key: torch.zeros(shape)}, tmp_path / "l.safetensors")
    with pytest.raises(error, match=words):
        Lora.load(tmp_path / "l.safetensors", base)


def test_files_and_bases_that_do_not_fit_are_named(sd15_folder, tmp_path) -> None:
    from stillmotion.checkpoints.base_model import load_base

    path = tmp_path / "xl.safetensors"
    save_file(tiny_lora("sdxl"), path)
    with pytest.raises(Mismatch) as caught:
        attach_lora(load_base(sd15_folder), path)
    assert str(caught.value).startswith(
        "xl.safetensors is a LoRA for another model and does not fit the UNet of tiny-sd15: "
        "there is no layer down_blocks.1"
    )


def test_plain_numbers_in_a_pickle_are_alphas(tmp_path) -> None:
    layer = tiny_unet().conv_in
    delta = random_delta(layer)
    state = {f"lora_unet_conv_in.lora_{name}.weight": tensor for name, tensor in delta.tensors.items()}
    torch.save(state | {"lora_unet_conv_in.alpha": 1.0}, tmp_path / "l.pt")
    assert Lora.load(tmp_path / "l.pt").parts["unet"]["conv_in"].scale() == 0.5


def test_words_that_came_with_it_are_kept_and_taught(tmp_path) -> None:
    from stillmotion.sampling.loading import load_models

    tiny_pipeline().save_pretrained(tmp_path / "base")
    delta = random_delta(tiny_unet().conv_in)
    state = {f"lora_unet_conv_in.lora_{name}.weight": tensor for name, tensor in delta.tensors.items()}
    words = {"bundle_emb.My Word.clip_l": torch.randn(2, 32), "bundle_emb.wide.clip_l": torch.randn(2, 768)}
    save_file(state | words, tmp_path / "l.safetensors")
    lora = Lora.load(tmp_path / "l.safetensors")
    again = Lora.load(lora.save(tmp_path / "again.safetensors"))
    assert again.bundled.keys() == words.keys() and [word.word for word in again.words] == ["my word", "wide"]
    with pytest.raises(WrongKind, match=r"bundle_emb\.My Word\.clip_l\), which the peft layout cannot hold"):
        lora.save(tmp_path / "peft.safetensors", "peft")
    given = {str(tmp_path / "l.safetensors"): 1.0}
    parts = load_models(tmp_path / "base", "none", given, dtype="float32", device="cpu")
    assert parts.words == ("my word",) and "my word" in parts.pipeline.tokenizer.get_vocab()
    assert "'wide' that came with l.safetensors is not used" in parts.notes[0]
