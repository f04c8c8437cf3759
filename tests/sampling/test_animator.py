"""The assembler: same pixels as diffusers' video pipelines, reproducible, nothing left behind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, AnimateDiffSDXLPipeline
from oracles.peers import adapter_of, motion_unet
from tiny import SIZE, TINY_FAMILY, tiny_motion, tiny_pipeline

from stillmotion.diffusion import vae
from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.diffusion.schedulers import make_scheduler
from stillmotion.errors import AttachError, Damaged, Mismatch, RequestError, SamplingError
from stillmotion.request import Request
from stillmotion.request.concepts import Concept, Concepts
from stillmotion.request.model_card import ModelCard
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.latents import Latents

KINDS = ("sd15", "sdxl")


def made(kind: str = "sd15", seed: int = 0, **motion) -> Animator:
    return Animator(tiny_pipeline(kind, seed), tiny_motion(**motion))


@pytest.fixture(scope="module")
def tiny() -> Animator:
    """Shared by tests that only draw with it (that this is possible is a test by itself)."""
    return made()


def diffusers_frames(kind: str, ours: Animator, request: Request) -> np.ndarray:
    """The same request through diffusers' AnimateDiff pipeline, from the same noise: (f, h, w, 3) in 0..1."""
    parts = dict(ours.pipeline.components)
    for name in ("safety_checker", "requires_safety_checker", "feature_extractor", "image_encoder"):
        parts.pop(name, None)
    parts["unet"] = motion_unet(parts["unet"], ours.motion)
    base = NoiseSchedule.from_config(parts["scheduler"].config)
    parts["scheduler"] = make_scheduler(request.scheduler, ours.family.schedule.over_base(base))
    cls = AnimateDiffPipeline if kind == "sd15" else AnimateDiffSDXLPipeline
    pipeline = cls(**parts, motion_adapter=adapter_of(ours.motion))
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(
        request.frames, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(request.seed)
    )
    output = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_frames=request.frames,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        latents=noise.transpose(0, 1)[None],
        output_type="np",
    )
    return output.frames[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_diffusers_animatediff(kind: str) -> None:
    ours = made(kind)
    request = ours.request(
        "a red rocket", negative_prompt="blue", frames=5, seed=3, num_inference_steps=3, group_norm="pooled"
    )
    clip = ours.animate(request)
    theirs = diffusers_frames(kind, ours, request)
    assert clip.frames.shape == (5, SIZE, SIZE, 3)
    assert np.abs(clip.frames.astype(float) - theirs * 255).max() < 0.6  # rounding to whole numbers


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_frames_whatever_else_is_drawn(kind: str) -> None:
    one, other = made(kind), made(kind)
    first = one.animate("a rocket", seed=7, scheduler="euler_a")
    torch.manual_seed(99)
    other.animate("a cat", seed=1)
    again = other.animate("a rocket", seed=7, scheduler="euler_a")
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, one.animate("a rocket", seed=8, scheduler="euler_a").frames)


def test_a_clip_carries_a_request_that_makes_it_again(tiny: Animator) -> None:
    clip = tiny.animate("a rocket")
    assert clip.request.seed is not None
    assert np.array_equal(tiny.animate(clip.request).frames, clip.frames)
    assert np.array_equal(made().animate(Request.from_json(clip.request.to_json())).frames, clip.frames)


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_is_the_still_of_the_base(kind: str) -> None:
    still = made(kind).animate("a rocket", frames=1, seed=4, scheduler="ddim", num_inference_steps=3)
    pipeline = tiny_pipeline(kind)
    pipeline.scheduler = make_scheduler("ddim", NoiseSchedule.from_config(pipeline.scheduler.config))
    image = pipeline(
        "a rocket",
        width=SIZE,
        height=SIZE,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        output_type="np",
    ).images
    assert np.abs(still.frames.astype(float) - image * 255).max() < 0.6


def test_motion_moves_and_its_strength_counts(tiny: Animator) -> None:
    clips = [tiny.animate("a rocket", seed=2, motion_scale=s).frames for s in (0, 0.5, 1)]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(clips, 2))
    still = made(seed=0)
    still.motion = None
    with pytest.raises(RequestError, match="4 frames need motion.*`motion=FILE`"):
        still.animate("a rocket", seed=2)


def test_noise_that_goes_on_draws_neighbours_alike(tiny: Animator) -> None:
    apart, alike = (tiny.sample(Request(prompt="a rocket", seed=2, noise_alpha=a)) for a in (0, 8))
    step = [(x.tensor[1:] - x.tensor[:-1]).abs().mean() for x in (apart, alike)]
    assert step[1] < 0.5 * step[0]
    assert tiny.request("a rocket").noise_alpha == 0


def test_nothing_is_left_on_the_pipeline_after_an_exception() -> None:
    ours = made()
    unet, scheduler = ours.pipeline.unet, ours.pipeline.scheduler
    keys = list(unet.state_dict())
    before = ours.animate("a cat", seed=1).frames

    def stop(stage: str, step: int, total: int) -> None:
        if (stage, step) == ("sampling", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.animate("a cat", on_progress=stop, seed=1)
    assert ours.pipeline.scheduler is scheduler
    assert list(unet.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert np.array_equal(ours.animate("a cat", seed=1).frames, before)


def test_progress_is_told_step_by_step_to_the_end(tiny: Animator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "SLICE_PIXELS", 2 * SIZE * SIZE)
    told = []
    tiny.animate("a cat", on_progress=lambda *step: told.append(step), frames=5, num_inference_steps=3)
    assert told[:4] == [("sampling", step, 3) for step in range(4)]
    assert told[4:] == [("decoding", done, 5) for done in (0, 2, 4, 5)]


def test_bf16_stays_near_float32_and_between_steps_is_float32() -> None:
    exact = made().sample(made().request("a cat", seed=1, num_inference_steps=8)).tensor
    ours = made()
    for model in (ours.pipeline.unet, ours.pipeline.text_encoder):
        model.to(torch.bfloat16)
    seen = set()
    step = ours.pipeline.scheduler.__class__.step

    def watched(self, model_output, timestep, sample, *args, **kwargs):
        seen.update((model_output.dtype, sample.dtype))
        return step(self, model_output, timestep, sample, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours.pipeline.scheduler.__class__, "step", watched)
        rough = ours.sample(ours.request("a cat", seed=1, num_inference_steps=8)).tensor
    assert seen == {torch.float32}
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_defaults_come_from_the_family_then_the_card_then_the_request() -> None:
    card = ModelCard(defaults={"guidance_scale": 2.0, "frames": 3}, schedule=NoiseSchedule(beta_end=0.02))
    ours = Animator(tiny_pipeline(), tiny_motion(), card)
    assert ours.defaults["num_inference_steps"] == TINY_FAMILY.sampling.num_inference_steps
    request = ours.request("a cat", frames=2)
    assert (request.frames, request.guidance_scale, request.num_inference_steps) == (2, 2.0, 2)
    assert ours.family.schedule.beta_end == 0.02
    plain = Animator(tiny_pipeline(), tiny_motion()).sample(request).tensor
    assert not torch.equal(ours.sample(request).tensor, plain)


def test_a_family_without_a_size_draws_at_the_size_of_the_unet() -> None:
    custom = made(name="custom", width=None, height=None, positions=8, frames=16)
    assert (custom.defaults["width"], custom.defaults["height"], custom.defaults["frames"]) == (SIZE, SIZE, 8)
    stills = Animator(tiny_pipeline())
    assert (stills.defaults["width"], stills.defaults["frames"]) == (SIZE, 1)
    assert len(stills.animate("a cat", num_inference_steps=2)) == 1


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"frames": 33}, AttachError, "32 frames at once, not 33"),
        ({"frames": 0}, RequestError, "frames is 0"),
        ({"framez": 3}, RequestError, "did you mean frames"),
        ({"base": "other"}, RequestError, "asks for the base 'other'.*holds 'mine'"),
        ({"scheduler": "magic"}, RequestError, "scheduler is .*magic"),
    ],
)
def test_wrong_requests_are_explained(fields, error, words) -> None:
    ours = Animator(tiny_pipeline(), tiny_motion(), models={"base": "mine"})
    with pytest.raises(error, match=words):
        ours.animate("a cat", **fields)


def test_sizes_that_the_vae_cannot_make_are_refused() -> None:
    ours = made()
    ours.pipeline.vae.register_to_config(block_out_channels=(16, 32, 32, 32, 32))
    with pytest.raises(RequestError, match="24x16.*multiples of 16"):
        ours.animate("a cat", width=24)


def test_hints_warn_but_do_not_stop(tiny: Animator) -> None:
    card = ModelCard(concepts=Concepts([Concept("rocket"), Concept("cat")]))
    ours = Animator(tiny.pipeline, tiny.motion, card)
    with pytest.warns(UserWarning, match="learned no word of 'a rockett'.*rocket"):
        assert len(ours.animate("a rockett")) == 4
    assert ours.hints(ours.request("a rocket")) == []
    ours.motion.notes = ("Taken for v2.",)
    assert ours.hints(ours.request("a rocket")) == ["Taken for v2."]
    ours.motion.notes = ()
    long = ours.request(" ".join(["rocket"] * 80))
    assert "75 tokens" in ours.hints(long)[0]
    assert ours.hints(long)[0].count("rocket") == 5


def test_latents_survive_on_disk(tiny: Animator, tmp_path) -> None:
    latents = tiny.sample(tiny.request("a cat", seed=1))
    path = latents.save(tmp_path / "cat.latents.safetensors")
    read = Latents.load(path)
    assert read.request == latents.request
    assert torch.equal(read.tensor, latents.tensor)
    assert np.array_equal(tiny.decode(read).frames, tiny.animate("a cat", seed=1).frames)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_no_latents(content: bytes, tmp_path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"x\.safetensors does not hold the latents"):
        Latents.load(file)
    with pytest.raises(Damaged, match="missing"):
        Latents.load(tmp_path / "missing")


def test_numbers_that_run_away_in_sampling_are_a_sentence_and_leave_nothing_behind() -> None:
    ours = made()
    before = ours.animate("a cat", seed=1).frames
    weight = ours.pipeline.unet.conv_out.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = torch.nan
    with pytest.raises(SamplingError, match=r"step 1 of 2 .* no longer finite .*damaged"):
        ours.animate("a cat", seed=1)
    with pytest.raises(SamplingError, match=r"guidance_scale is 1000 \(7.5 is usual\)"):
        ours.animate("a cat", seed=1, guidance_scale=1000)
    weight.data.copy_(kept)
    assert np.array_equal(ours.animate("a cat", seed=1).frames, before)


def test_latents_for_another_vae_are_refused(tiny: Animator) -> None:
    latents = tiny.sample(Request(prompt="a cat", seed=1))
    with pytest.raises(Mismatch, match="16 channels, but the VAE of this base takes 4"):
        tiny.decode(Latents(latents.tensor.repeat(1, 4, 1, 1), latents.request))


def test_latents_in_files_are_checked(tiny: Animator, tmp_path) -> None:
    good = tiny.sample(Request(prompt="a cat", seed=1))
    file = tmp_path / "x.latents.safetensors"
    assert torch.equal(Latents.load(good.save(file)).tensor, good.tensor)
    bare = Request(prompt="a cat")
    for tensor, request, reason in [
        (good.tensor * torch.nan, good.request, "nan or inf"),
        (good.tensor[:2], good.request, "latents of 4 frames were expected"),
        (good.tensor[0], good.request, "latents of 4 frames"),
        (good.tensor.long(), good.request, "int64"),
        (good.tensor, bare, "does not say frames"),
    ]:
        with pytest.raises(Damaged, match=reason):
            Latents.load(Latents(tensor, request).save(file, overwrite=True))
