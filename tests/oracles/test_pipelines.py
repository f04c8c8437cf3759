"""Stock diffusers pipelines with motion attached against diffusers' AnimateDiff ones, on decoded frames."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffVideoToVideoPipeline,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from oracles.peers import adapter_of, motion_unet
from tiny import SIZE, tiny_motion, tiny_pipeline

from stillmotion.attachments.motion import attach_motion

FRAMES = 6
PROMPT, AGAIN = "a red rocket", "a blue cat"


def noise(seed: int = 5) -> torch.Tensor:
    """(f, c, h, w); diffusers' AnimateDiff wants (1, c, f, h, w)."""
    return torch.randn(FRAMES, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(seed))


def as_video(latents: torch.Tensor) -> torch.Tensor:
    return latents.transpose(0, 1)[None].clone()


def images(seed: int = 6) -> torch.Tensor:
    """A clip of random images in [0, 1], (f, 3, h, w)."""
    return torch.rand(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def built_from(cls, pipeline, **parts):
    """Another pipeline class on the same components."""
    wanted = cls.__init__.__annotations__
    common = {name: part for name, part in pipeline.components.items() if name in wanted}
    if "requires_safety_checker" in wanted:
        common["requires_safety_checker"] = False
    return quiet(cls(**common | parts))


SETTINGS = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt"}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("mid", [True, False])
def test_text_to_video(kind, mid):
    pipeline, net = tiny_pipeline(kind), tiny_motion(mid=mid)
    size = {"height": SIZE, "width": SIZE}
    with attach_motion(pipeline.unet, net, FRAMES, group_norm="pooled"):
        ours = pipeline(PROMPT, num_images_per_prompt=FRAMES, latents=noise(), **size, **SETTINGS).images
    still = pipeline(PROMPT, num_images_per_prompt=FRAMES, latents=noise(), **size, **SETTINGS).images
    cls = AnimateDiffPipeline if kind == "sd15" else AnimateDiffSDXLPipeline
    peer = built_from(cls, pipeline, unet=motion_unet(pipeline.unet, net), motion_adapter=adapter_of(net))
    theirs = peer(PROMPT, num_frames=FRAMES, latents=as_video(noise()), **size, **SETTINGS).frames[0]
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - still).abs().max() > 1e-2


def test_two_prompts_are_two_clips():
    pipeline, net = tiny_pipeline(), tiny_motion()
    latents = torch.cat([noise(1), noise(2)])
    with attach_motion(pipeline.unet, net, FRAMES):
        both = pipeline([PROMPT, AGAIN], num_images_per_prompt=FRAMES, latents=latents, **SETTINGS).images
        second = pipeline(AGAIN, num_images_per_prompt=FRAMES, latents=noise(2), **SETTINGS).images
    assert (both[FRAMES:] - second).abs().max() < 1e-5


def test_controlnet():
    pipeline, net = tiny_pipeline(), tiny_motion()
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for layer in [*control.controlnet_down_blocks, control.controlnet_mid_block]:
        torch.nn.init.normal_(layer.weight, std=0.2)
    torch.nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight, std=0.2)
    stock = built_from(StableDiffusionControlNetPipeline, pipeline, controlnet=control)
    with attach_motion(stock.unet, net, FRAMES, group_norm="pooled"):
        ours = stock([PROMPT] * FRAMES, image=images(), latents=noise(), **SETTINGS).images
        other = stock([PROMPT] * FRAMES, image=images(7), latents=noise(), **SETTINGS).images
    peer = built_from(
        AnimateDiffControlNetPipeline,
        pipeline,
        unet=motion_unet(pipeline.unet, net),
        motion_adapter=adapter_of(net),
        controlnet=control,
    )
    hints = list(images())
    theirs = peer(
        PROMPT,
        num_frames=FRAMES,
        conditioning_frames=[h[None] for h in hints],
        latents=as_video(noise()),
        height=SIZE,
        width=SIZE,
        **SETTINGS,
    )
    assert (ours - theirs.frames[0]).abs().max() < 1e-4
    assert (ours - other).abs().max() > 1e-3, "the hints did nothing"


def test_img2img_equals_video_to_video():
    pipeline, net = tiny_pipeline(), tiny_motion()
    stock = built_from(StableDiffusionImg2ImgPipeline, pipeline)
    with torch.no_grad():
        latents = (
            pipeline.vae.encode(images() * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        )
    settings = {**SETTINGS, "num_inference_steps": 5}
    with attach_motion(stock.unet, net, FRAMES, group_norm="pooled"):
        ours = stock(
            [PROMPT] * FRAMES, image=latents, strength=0.6, generator=_generator(), **settings
        ).images
    peer = built_from(
        AnimateDiffVideoToVideoPipeline,
        pipeline,
        unet=motion_unet(pipeline.unet, net),
        motion_adapter=adapter_of(net),
    )
    start = pipeline.scheduler
    start.set_timesteps(5)
    noisy = start.add_noise(latents, torch.randn(latents.shape, generator=_generator()), start.timesteps[2:3])
    theirs = peer(
        prompt=PROMPT,
        strength=0.6,
        latents=as_video(noisy),
        height=SIZE,
        width=SIZE,
        **settings,
    )
    assert (ours - theirs.frames[0]).abs().max() < 1e-4


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def _inpaint(pipeline, images):
    masks = torch.zeros(FRAMES, 1, SIZE, SIZE)
    masks[:, :, :, SIZE // 2 :] = 1
    return pipeline(
        [PROMPT] * FRAMES,
        image=images * 2 - 1,
        mask_image=masks,
        strength=1.0,
        height=SIZE,
        width=SIZE,
        generator=_generator(),
        **SETTINGS,
    ).images


def _img2img(pipeline, images):
    return pipeline([PROMPT] * FRAMES, image=images, strength=0.7, generator=_generator(), **SETTINGS).images


@pytest.mark.parametrize(
    ("cls", "run"),
    [(StableDiffusionImg2ImgPipeline, _img2img), (StableDiffusionInpaintPipeline, _inpaint)],
)
def test_frames_see_each_other_only_with_motion(cls, run):
    """A change in the last input image reaches the first output frame if and only if motion is on."""
    pipeline = built_from(cls, tiny_pipeline())
    one = images()
    two = one.clone()
    two[-1] = 1 - two[-1]
    apart = run(pipeline, one), run(pipeline, two)
    with attach_motion(pipeline.unet, tiny_motion(), FRAMES):
        moved = run(pipeline, one), run(pipeline, two)
    assert torch.equal(apart[0][0], apart[1][0])
    assert (moved[0][0] - moved[1][0]).abs().max() > 1e-4
    assert torch.equal(run(pipeline, one), apart[0])
