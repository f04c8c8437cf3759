"""ControlNets as attachments on plain pipelines, against the ControlNet pipelines of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from controlnets import hints, tiny_controlnet
from diffusers import (
    HeunDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from tiny import SIZE, Kind, tiny_motion, tiny_pipeline

from stillmotion.attachments.control import ControlAttachment
from stillmotion.attachments.motion import attach_motion
from stillmotion.attachments.precision import float32_outside
from stillmotion.errors import AttachError

FRAMES = 3
SETTINGS: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


def noise(seed: int = 5) -> torch.Tensor:
    return torch.randn(FRAMES, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(seed))


def call(pipeline: Any, **settings: Any) -> torch.Tensor:
    """A prompt for each image: diffusers' ControlNet pipelines want one where each has its own hint."""
    settings = SETTINGS | {"guidance_scale": 4.0, "height": SIZE, "width": SIZE} | settings
    prompts = {"prompt": ["a red rocket"] * FRAMES, "negative_prompt": ["blue"] * FRAMES}
    return pipeline(**prompts, latents=noise(), **settings).images


def peer(pipeline: Any, nets: Any) -> Any:
    """diffusers' pipeline on the same components."""
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        parts.pop("feature_extractor", None)
        made = StableDiffusionXLControlNetPipeline(**parts, controlnet=nets, add_watermarker=False)
    else:
        made = StableDiffusionControlNetPipeline(**parts, controlnet=nets, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipeline: Any, nets: Any, images: Any, **settings: Any) -> torch.Tensor:
    return call(peer(pipeline, nets), image=images, **settings)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("own", "peers"),
    [
        ({}, {}),
        ({"scale": 0.35}, {"controlnet_conditioning_scale": 0.35}),
        ({"start": 0.25, "end": 0.8}, {"control_guidance_start": 0.25, "control_guidance_end": 0.8}),
        ({"guess_mode": True}, {"guess_mode": True}),
        ({"guess_mode": True, "scale": 0.5, "end": 0.5}, None),
    ],
)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_one_net_is_the_pipeline_of_diffusers(kind: Kind, own, peers, guidance) -> None:
    if peers is None:
        peers = {"guess_mode": True, "controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.5}
    pipeline, net, images = tiny_pipeline(kind), tiny_controlnet(kind), hints(FRAMES)
    with attach_motion(pipeline.unet, tiny_motion(), FRAMES):
        expected = theirs(pipeline, net, images, guidance_scale=guidance, **peers)
        plain = call(pipeline, guidance_scale=guidance)
        with ControlAttachment(net, images, **own).attach(pipeline):
            ours = call(pipeline, guidance_scale=guidance)
        assert (ours - expected).abs().max() < 1e-5
        assert (ours - plain).abs().max() > 1e-3, "the hints did nothing"
        assert torch.equal(call(pipeline, guidance_scale=guidance), plain)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_several_nets_add_up(kind: Kind) -> None:
    pipeline, nets = tiny_pipeline(kind), [tiny_controlnet(kind, 1), tiny_controlnet(kind, 2)]
    images = [hints(FRAMES, 1), hints(FRAMES, 2)]
    scales, starts, ends = [0.7, 0.4], [0.0, 0.3], [0.6, 1.0]
    with attach_motion(pipeline.unet, tiny_motion(), FRAMES):
        expected = theirs(
            pipeline,
            nets,
            images,
            controlnet_conditioning_scale=scales,
            control_guidance_start=starts,
            control_guidance_end=ends,
        )
        one, other = (
            ControlAttachment(*each) for each in zip(nets, images, scales, starts, ends, strict=True)
        )
        with one.attach(pipeline), other.attach(pipeline):
            ours = call(pipeline)
            one.enabled = False
            alone = call(pipeline)
    assert (ours - expected).abs().max() < 1e-5
    assert (alone - expected).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_one_hint_counts_for_every_frame_and_clips_of_several_prompts(kind: Kind) -> None:
    pipeline, net, image = tiny_pipeline(kind), tiny_controlnet(kind), hints(1)
    with ControlAttachment(net, image).attach(pipeline, FRAMES):
        one = call(pipeline)
    with ControlAttachment(net, image.repeat(FRAMES, 1, 1, 1)).attach(pipeline):
        assert (call(pipeline) - one).abs().max() < 1e-6
        two = pipeline(
            ["a red rocket", "a cat"],
            negative_prompt=["blue"] * 2,
            num_images_per_prompt=FRAMES,
            latents=noise().repeat(2, 1, 1, 1),
            height=SIZE,
            width=SIZE,
            guidance_scale=4.0,
            **SETTINGS,
        ).images
    assert (two[:FRAMES] - one).abs().max() < 1e-5
    assert (two[FRAMES:] - one).abs().max() > 1e-4


def test_samplers_of_second_order_and_parts_of_the_steps() -> None:
    """Heun comes to each timestep but the first twice; diffusers counts the calls."""
    pipeline, net, images = tiny_pipeline(), tiny_controlnet(), hints(FRAMES)
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    for start, end in ((0.0, 0.5), (0.3, 1.0), (0.4, 0.7)):
        expected = theirs(pipeline, net, images, control_guidance_start=start, control_guidance_end=end)
        with ControlAttachment(net, images, 1.0, start, end).attach(pipeline):
            assert (call(pipeline) - expected).abs().max() < 1e-5
            assert (call(pipeline) - expected).abs().max() < 1e-5, "and again"


def test_any_pipeline_will_do() -> None:
    """Image to image, which counts its steps from the strength on, with the net in its first half."""
    parts = {name: part for name, part in tiny_pipeline().components.items() if name != "image_encoder"}
    pipeline = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    net, called = tiny_controlnet(), []
    net.register_forward_hook(lambda *_: called.append(1))
    with ControlAttachment(net, hints(FRAMES), end=0.5).attach(pipeline):
        pipeline(
            ["a rocket"] * FRAMES,
            image=hints(FRAMES, 3),
            strength=0.5,
            num_inference_steps=8,
            output_type="latent",
        )
    assert len(called) == 2, "of four steps"


def test_it_goes_on_a_unet_and_comes_off_after_an_exception() -> None:
    pipeline, net = tiny_pipeline(), tiny_controlnet()
    before, keys = call(pipeline), list(pipeline.unet.state_dict())
    with pytest.raises(KeyError), ControlAttachment(net, hints(FRAMES)).attach(pipeline.unet):
        assert (call(pipeline) - before).abs().max() > 1e-3
        assert list(pipeline.unet.state_dict()) == keys
        raise KeyError
    assert torch.equal(call(pipeline), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_net_follows_the_unet(dtype) -> None:
    pipeline, net = tiny_pipeline(), tiny_controlnet()
    unet = pipeline.unet.to(dtype)
    with ControlAttachment(net, hints(2)).attach(unet):
        sample = torch.randn(2, 4, SIZE // 2, SIZE // 2, dtype=dtype)
        output = unet(sample, 10, torch.randn(2, 5, 32, dtype=dtype)).sample
    assert output.dtype == dtype and output.isfinite().all() and net.dtype == dtype


def test_a_sampler_in_float32_leaves_the_net_in_the_dtype_of_the_unet() -> None:
    """`float32_outside` casts what the UNet gets, whichever of the two hooks runs first."""
    net = tiny_controlnet()
    unet = tiny_pipeline().unet.to(torch.bfloat16)
    sample, text = torch.randn(2, 4, SIZE // 2, SIZE // 2), torch.randn(2, 5, 32)
    with ControlAttachment(net, hints(2)).attach(unet), float32_outside(unet):
        one = unet(sample, 10, text).sample
    with float32_outside(unet), ControlAttachment(net, hints(2)).attach(unet):
        other = unet(sample, 10, text).sample
    assert torch.equal(one, other) and one.dtype == torch.float32 and net.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "target", "words"),
    [
        ({"hints": hints(2)}, "pipeline", "2 hints were given for 3 frames: give one for each, or one image"),
        ({"hints": hints(3, size=24)}, "pipeline", "The hints are 24x24 pixels, but the clip is 16x16"),
        ({"hints": hints(3), "start": 0.5}, "unet", "attach to the pipeline, not to its UNet"),
        ({"hints": hints(3), "guess_mode": True}, "unet", "attach to the pipeline"),
        ({"hints": hints(3)[0]}, "pipeline", r"hints are \(3, 16, 16\), expected"),
    ],
)
def test_what_cannot_be_is_a_sentence(arguments, target, words) -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(AttachError, match=words):
        place = pipeline if target == "pipeline" else pipeline.unet
        with ControlAttachment(tiny_controlnet(), **arguments).attach(place, FRAMES):
            call(pipeline)
    assert not pipeline.unet._forward_pre_hooks


def test_global_pooling_is_guess_mode() -> None:
    pipeline, images = tiny_pipeline(), hints(FRAMES)
    net = tiny_controlnet(global_pool_conditions=True)
    expected = theirs(pipeline, net, images)
    with ControlAttachment(net, images).attach(pipeline):
        assert (call(pipeline) - expected).abs().max() < 1e-5
