"""Names become parts: what is taken from where, what is refused, and in how many words."""

from __future__ import annotations

import gc
import inspect
import json
import shutil
from importlib.metadata import EntryPoints
from pathlib import Path

import numpy as np
import pytest
import torch
from loras import motion_parts, random_parts
from safetensors.torch import save_file
from tiny import TINY_FAMILY, tiny_lora, tiny_motion, tiny_pipeline

from stillmotion.attachments.frames import FrameContext
from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Mismatch, RequestError, UnknownFile, WeightsError, WrongKind
from stillmotion.sampling import loading
from stillmotion.sampling.animator import Animator


def save_lora(path: Path, kind: str = "sd15", scheme: str = "peft") -> Path:
    save_file(tiny_lora(kind, scheme), path)
    return path


def frames_of(animator: Animator) -> np.ndarray:
    return animator.animate("a rocket", seed=1, frames=3, num_inference_steps=2).frames


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_base_and_motion_from_folders(kind, request, motion_folder) -> None:
    base = str(request.getfixturevalue(f"{kind}_folder"))
    animator = Animator.load(base, motion=str(motion_folder), dtype="fp32", device="cpu")
    clip = animator.animate("a rocket", seed=1, num_inference_steps=2)
    assert len(clip) == TINY_FAMILY.sampling.frames
    assert (clip.request.base, clip.request.motion, clip.request.dtype) == (
        base,
        str(motion_folder),
        "float32",
    )
    again = Animator.load(clip.request.base, clip.request.motion, clip.request.loras, clip.request.dtype)
    assert np.array_equal(again.animate(clip.request).frames, clip.frames)


def test_without_names_the_bundled_model_is_used(emoji_folder, monkeypatch) -> None:
    monkeypatch.setattr(loading, "bundled_folder", lambda: emoji_folder)
    animator = Animator.load()
    assert (animator.card.name, animator.models["base"], animator.defaults["frames"]) == ("emoji", "emoji", 3)
    clip = animator.animate("a rocket")
    assert (len(clip), clip.request.base) == (3, "emoji")


def test_without_motion_a_model_of_clips_draws_stills(emoji_folder) -> None:
    animator = Animator.load(str(emoji_folder), motion="none")
    assert len(animator.animate("a rocket")) == 1


def test_an_installation_without_the_bundled_model_says_so(monkeypatch) -> None:
    monkeypatch.setattr("stillmotion.request.installed_models.entry_points", lambda **_: EntryPoints())
    for base in (None, "emoji"):
        with pytest.raises(UnknownFile, match=r"not installed: pip install 'stillmotion\[emoji\]'.*`base=`"):
            Animator.load(base)


def test_a_base_without_motion_asks_for_it(sd15_folder) -> None:
    with pytest.raises(WeightsError, match="brings no motion of its own.*`motion=FILE`.*`motion='none'`"):
        Animator.load(str(sd15_folder))
    still = Animator.load(str(sd15_folder), motion="none").animate("a cat", num_inference_steps=2)
    assert (len(still), still.request.motion) == (1, "none")


def test_the_cards_of_base_and_motion_are_merged(sd15_folder, motion_folder, tmp_path) -> None:
    base, motion = tmp_path / "base", tmp_path / "motion"
    shutil.copytree(sd15_folder, base)
    shutil.copytree(motion_folder, motion)
    (base / "stillmotion.json").write_text(json.dumps({"defaults": {"frames": 2, "width": 24}}))
    schedule = {"beta_schedule": "scaled_linear", "beta_end": 0.02, "noise_alpha": 1.5}
    facts = {"defaults": {"frames": 5}, "schedule": schedule}
    (motion / "stillmotion.json").write_text(json.dumps(facts))
    animator = Animator.load(str(base), str(motion))
    assert (animator.defaults["frames"], animator.defaults["width"]) == (5, 24)
    assert (animator.family.schedule.beta_schedule, animator.family.schedule.beta_end) == (
        "scaled_linear",
        0.02,
    )
    assert animator.request("a cat").noise_alpha == 1.5


def test_precision_is_that_of_the_machine_and_the_vae_stays_exact(
    sd15_folder, motion_folder, monkeypatch
) -> None:
    monkeypatch.setattr(loading, "best_dtype", lambda device: torch.bfloat16)
    animator = Animator.load(str(sd15_folder), str(motion_folder), device="cpu")
    exact = Animator.load(str(sd15_folder), str(motion_folder), dtype="float32", device="cpu")
    assert animator.pipeline.unet.dtype == animator.pipeline.text_encoder.dtype == torch.bfloat16
    assert animator.models["dtype"] == "bfloat16"
    weights = exact.pipeline.vae.state_dict()
    assert all(torch.equal(t, weights[name]) for name, t in animator.pipeline.vae.state_dict().items())
    difference = np.abs(frames_of(animator).astype(float) - frames_of(exact)).mean()
    assert 0 < difference < 4
    with pytest.raises(RequestError, match="dtype is 'int3'"):
        Animator.load(str(sd15_folder), str(motion_folder), dtype="int3")


@pytest.mark.parametrize(("scheme", "name"), [("peft", "style"), ("processor", "v3_sd15_adapter")])
def test_loras_change_the_clip_by_their_weight(scheme, name, sd15_folder, motion_folder, tmp_path) -> None:
    lora = save_lora(tmp_path / f"{name}.safetensors", scheme=scheme)
    clips = [
        frames_of(Animator.load(str(sd15_folder), str(motion_folder), loras=loras, dtype="float32"))
        for loras in (None, {str(lora): 0.0}, {str(lora): 0.5}, {str(lora): 1.0})
    ]
    assert np.array_equal(clips[0], clips[1])
    changes = [np.abs(clip.astype(float) - clips[0]).mean() for clip in clips[2:]]
    assert 0.1 < changes[0] < changes[1]


def test_files_in_the_wrong_place_are_refused(sd15_folder, motion_folder, tmp_path) -> None:
    base, motion = str(sd15_folder), str(motion_folder)
    lora = save_lora(tmp_path / "style.safetensors")
    with pytest.raises(WrongKind, match=r"style\.safetensors is .*LoRA"):
        Animator.load(base, motion=str(lora))
    with pytest.raises(WrongKind, match="motion module"):
        Animator.load(base, motion, loras={motion: 1.0})
    with pytest.raises(WeightsError, match=r"no file or folder nothing\.safetensors"):
        Animator.load(base, motion="nothing.safetensors")
    with pytest.raises(Mismatch, match="LoRA"):
        Animator.load(base, motion, loras={str(save_lora(tmp_path / "xl.safetensors", "sdxl")): 1.0})


@pytest.mark.parametrize(
    ("key", "shape", "error", "words"),
    [
        (
            "lora_unet_x.oft_diag",
            (8, 8),
            WrongKind,
            r"l\.safetensors is an OFT .*; stillmotion applies LoRA",
        ),
        (
            "lora_unet_attn2_to_k.lora_down.weight",
            (8, 768),
            Mismatch,
            r"is a LoRA for Stable Diffusion 1\.x, but the base is the bundled emoji model",
        ),
    ],
)
def test_loras_are_refused_before_the_base_is_loaded(
    key, shape, error, words, emoji_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(loading, "load_base", lambda *_: pytest.fail("the base was loaded first"))
    save_file({key: torch.zeros(shape)}, tmp_path / "l.safetensors")
    with pytest.raises(error, match=words):
        Animator.load(str(emoji_folder), loras={str(tmp_path / "l.safetensors"): 1.0})


@pytest.mark.parametrize("options", [{"algorithm": "loha"}, {"algorithm": "lokr"}, {"magnitude": "rows"}])
def test_algorithms_that_were_refused_once_are_loaded(options, sd15_folder, motion_folder, tmp_path) -> None:
    path = Lora(random_parts(tiny_pipeline(), **options)).save(tmp_path / "l.safetensors")
    plain = Animator.load(str(sd15_folder), str(motion_folder), dtype="float32")
    styled = Animator.load(str(sd15_folder), str(motion_folder), {str(path): 1.0}, dtype="float32")
    assert not np.array_equal(frames_of(styled), frames_of(plain))


def save_motion_lora(path: Path, motion=None) -> Path:
    return Lora(motion_parts(motion or tiny_motion())).save(path)


def test_a_clip_leaves_the_pipeline_as_it_was(sd15_folder, motion_folder, tmp_path) -> None:
    loras = {str(save_lora(tmp_path / "style.safetensors")): "0:0,2:1"}
    moves = {str(save_motion_lora(tmp_path / "pan.safetensors")): 0.5}
    animator = Animator.load(str(sd15_folder), str(motion_folder), loras, "fp32", motion_loras=moves)
    networks = [animator.pipeline.unet, animator.pipeline.text_encoder, animator.motion]
    before = [{name: t.clone() for name, t in network.state_dict().items()} for network in networks]
    first = frames_of(animator)
    assert np.array_equal(frames_of(animator), first)
    for network, state in zip(networks, before, strict=True):
        assert list(network.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    asleep, plain = animator.pipeline, load_base(sd15_folder, torch.float32)
    assert FrameContext.on(asleep.unet).attachments
    stills = [
        pipe("a rocket", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="np")
        for pipe in (asleep, plain)
    ]
    assert np.array_equal(stills[0].images, stills[1].images), "asleep they change nothing"
    del animator
    gc.collect()
    for network in networks:
        assert not any(module._forward_hooks for module in network.modules())


def test_a_clip_that_fails_leaves_it_too(sd15_folder, motion_folder, tmp_path, monkeypatch) -> None:
    loras = {str(save_lora(tmp_path / "style.safetensors")): 1.0}
    animator = Animator.load(str(sd15_folder), str(motion_folder), loras, dtype="fp32")

    def stop(stage: str, step: int, total: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animator.sample(animator.request("a rocket", seed=1), stop)
    assert not any(module._forward_hooks for module in animator.pipeline.unet.modules())


def test_the_clip_says_which_loras_made_it(sd15_folder, motion_folder, tmp_path) -> None:
    loras = {str(save_lora(tmp_path / "style.safetensors")): "unet:0.8,text:0.5"}
    moves = {str(save_motion_lora(tmp_path / "pan.safetensors")): 0.5}
    animator = Animator.load(str(sd15_folder), str(motion_folder), loras, "fp32", motion_loras=moves)
    clip = animator.animate("a rocket", seed=1, frames=3, num_inference_steps=2)
    assert clip.request.loras == {next(iter(loras)): {"unet": 0.8, "text": 0.5}}
    assert clip.request.motion_loras == moves
    r = clip.request
    again = Animator.load(r.base, r.motion, r.loras, r.dtype, motion_loras=r.motion_loras)
    assert np.array_equal(again.animate(r).frames, clip.frames)


def test_alpha_counts_unless_the_original_is_wanted(sd15_folder, motion_folder, tmp_path) -> None:
    path = Lora(random_parts(tiny_pipeline(), alpha=lambda path: 0.5)).save(tmp_path / "l.safetensors")
    animator = Animator.load(str(sd15_folder), str(motion_folder), {str(path): 1.0}, "fp32")
    fields = {"seed": 1, "frames": 3, "num_inference_steps": 2}
    kohya, original = (
        animator.animate("a rocket", lora_alpha=lora_alpha, **fields).frames
        for lora_alpha in ("use", "ignore")
    )
    assert not np.array_equal(kohya, original) and np.array_equal(kohya, frames_of(animator))


@pytest.mark.parametrize("layout", ["kohya", "animatediff"])
@pytest.mark.parametrize("right", ["loras", "motion_loras"])
def test_a_lora_under_the_other_flag_goes_where_it_belongs(
    right, layout, sd15_folder, motion_folder, tmp_path
) -> None:
    parts = (
        motion_parts(tiny_motion()) if right == "motion_loras" else random_parts(tiny_pipeline(), ("unet",))
    )
    path = Lora(parts).save(tmp_path / "v3_sd15_adapter.safetensors", layout)
    wrong = {"loras": "motion_loras", "motion_loras": "loras"}[right]
    base, motion = str(sd15_folder), str(motion_folder)
    wanted, found = (
        Animator.load(base, motion, dtype="fp32", **{flag: {str(path): 0.5}}) for flag in (right, wrong)
    )
    said = "motion, as `motion_loras=` does" if right == "motion_loras" else "image model, as `loras=` does"
    hints = found.hints(found.request("a rocket"))
    assert [hint for hint in hints if hint.startswith(path.name) and hint.endswith(f"to the {said}.")]
    assert not any(path.name in hint for hint in wanted.hints(wanted.request("a rocket")))
    with pytest.warns(UserWarning, match=said):
        assert np.array_equal(frames_of(found), frames_of(wanted))


@pytest.mark.parametrize("flag", ["loras", "motion_loras"])
def test_a_motion_lora_without_motion_is_refused(flag, sd15_folder, tmp_path) -> None:
    path = save_motion_lora(tmp_path / "pan.safetensors")
    with pytest.raises(WrongKind, match=r"pan\.safetensors is a motion LoRA .*no motion here.*`motion=FILE`"):
        Animator.load(str(sd15_folder), motion="none", **{flag: {str(path): 1.0}})


@pytest.mark.parametrize("flag", ["loras", "motion_loras"])
def test_a_motion_lora_for_other_motion_is_refused(flag, sd15_folder, motion_folder, tmp_path) -> None:
    path = save_motion_lora(tmp_path / "pan.safetensors", tiny_motion(channels=(32, 128)))
    with pytest.raises(Mismatch, match=r"pan\.safetensors is a LoRA .* does not fit the motion"):
        Animator.load(str(sd15_folder), str(motion_folder), **{flag: {str(path): 1.0}})


@pytest.mark.parametrize("flag", ["loras", "motion_loras"])
def test_what_is_no_lora_is_refused_under_both_flags(flag, sd15_folder, motion_folder, tmp_path) -> None:
    base, motion = str(sd15_folder), str(motion_folder)
    for other in (motion, base):
        with pytest.raises(WrongKind, match="not a LoRA for the image model or .* or a motion LoRA"):
            Animator.load(base, motion, **{flag: {other: 1.0}})
    with pytest.raises(RequestError, match="A weight is 'much'"):
        Animator.load(base, motion, **{flag: {"l.safetensors": "much"}})


def test_motion_of_another_shape_does_not_fit(sd15_folder, tmp_path) -> None:
    other = tiny_motion(channels=(32, 64, 64), layers=(1, 1, 1), heads=(4, 4, 4))
    path = MotionModel.from_state(other.family, other.state_dict()).save(tmp_path / "other.safetensors")
    with pytest.raises(Mismatch, match=r"other\.safetensors"):
        Animator.load(str(sd15_folder), str(path))


def test_pia_needs_a_image_and_says_so(sd15_folder, tmp_path) -> None:
    net = tiny_motion(conv_in=9)
    model = MotionModel.from_state(net.family, net.state_dict())
    model.extra = {"conv_in.weight": torch.zeros(32, 9, 3, 3), "conv_in.bias": torch.zeros(32)}
    path = model.save(tmp_path / "pia.safetensors")
    with pytest.raises(WrongKind, match=r"pia\.safetensors is PIA.*v3_sd15_mm"):
        Animator.load(str(sd15_folder), str(path))


def test_two_animators_share_nothing(sd15_folder, motion_folder, tmp_path) -> None:
    plain = Animator.load(str(sd15_folder), str(motion_folder), dtype="float32")
    before = frames_of(plain)
    lora = save_lora(tmp_path / "style.safetensors")
    styled = Animator.load(str(sd15_folder), str(motion_folder), {str(lora): 1.0}, dtype="float32")
    assert not np.array_equal(frames_of(styled), before)
    assert np.array_equal(frames_of(plain), before)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device": "cuda:63"}, "device is 'cuda:63', which torch does not have here; it has .*cpu"),
        ({"device": "xyz"}, "device is 'xyz'"),
        ({"device": ""}, "device is ''"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"dtype": "int8"}, "dtype is 'int8', but should be one of float32"),
        ({"dtype": torch.int8}, "dtype is 'int8', but should be one of float32"),
        ({"torch_dtype": torch.float16}, "no argument torch_dtype: it is called dtype here"),
        ({"motions": "x"}, "no argument motions. Did you mean motion?"),
        ({"safety": None}, "no argument safety. It takes base, motion"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_loaded(
    given, words, monkeypatch, emoji_folder
) -> None:
    monkeypatch.setattr(loading, "load_base", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(RequestError, match=words):
        Animator.load(str(emoji_folder), **given)


def test_a_device_and_a_dtype_that_are_there_are_taken(emoji_folder) -> None:
    animator = Animator.load(str(emoji_folder), device=torch.device("cpu"), dtype=torch.float32)
    assert animator.pipeline.device.type == "cpu" and animator.models["dtype"] == "float32"


def test_the_arguments_in_messages_are_those_of_load() -> None:
    taken = inspect.signature(Animator.load).parameters.values()
    assert tuple(each.name for each in taken if each.kind is not each.VAR_KEYWORD) == loading.ARGUMENTS
