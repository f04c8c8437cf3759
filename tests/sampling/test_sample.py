"""The sampler against a plain call of the stock pipeline with motion attached: equal to the last bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from safetensors.torch import save_file
from tiny import SIZE, tiny_motion, tiny_pipeline

import stillmotion as sm
from stillmotion.attachments.precision import float32_outside
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.diffusion.noise import progressive_noise
from stillmotion.diffusion.text import Conditioner
from stillmotion.errors import SamplingError
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.sample import sample

LINEAR = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "ddim": DDIMScheduler(**LINEAR, steps_offset=1, clip_sample=False, timestep_spacing="leading"),
    "euler_a": EulerAncestralDiscreteScheduler(**LINEAR, steps_offset=1, timestep_spacing="leading"),
}
REQUESTS = [
    {"negative_prompt": "blue", "frames": 3},
    {"frames": 4, "scheduler": "euler_a", "noise_alpha": 1.5},
    {"frames": 2, "guidance_scale": 1.0, "negative_prompt": "blue"},
    {"frames": 2, "clip_skip": 1, "width": 24, "group_norm": "pooled", "motion_scale": 0.5},
]


def plainly(kind: str, dtype: torch.dtype, fields: dict, prompt: str = "a red rocket") -> torch.Tensor:
    """Latents by diffusers alone, besides motion: what a user with a pipeline of his own writes."""
    pipeline = tiny_pipeline(kind)
    for part in (pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            part.to(dtype)
    pipeline.scheduler = SCHEDULERS[fields.get("scheduler", "ddim")]
    frames, width = fields["frames"], fields.get("width", SIZE)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(frames, 4, SIZE // 2, width // 2, generator=generator)
    if not hasattr(pipeline.text_encoder, "text_model"):
        pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder  # transformers 5.6
    motion = tiny_motion().to(dtype)
    with (
        float32_outside(pipeline.unet),
        sm.attach(
            pipeline.unet,
            motion,
            frames=frames,
            motion_scale=fields.get("motion_scale", 1.0),
            group_norm=fields.get("group_norm", "family"),
        ),
    ):
        return pipeline(
            prompt,
            negative_prompt=fields.get("negative_prompt"),
            height=SIZE,
            width=width,
            num_inference_steps=3,
            guidance_scale=fields.get("guidance_scale", 3.0),
            clip_skip=fields.get("clip_skip"),
            num_images_per_prompt=frames,
            latents=progressive_noise(noise, fields.get("noise_alpha", 0.0)),
            generator=generator,
            output_type="latent",
        ).images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields", REQUESTS, ids=["negative", "ancestral", "no-guidance", "clip-skip"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_animator_draws_what_the_plain_pipeline_draws(kind, fields, dtype) -> None:
    ours = Animator(tiny_pipeline(kind), tiny_motion().to(dtype))
    for name, part in ours.pipeline.components.items():
        if name == "unet" or name.startswith("text_encoder"):
            part.to(dtype)
    request = ours.request("a red rocket", seed=3, num_inference_steps=3, **fields)
    latents = ours.sample(request).tensor
    assert torch.equal(latents, plainly(kind, dtype, fields))
    assert not torch.equal(latents, plainly(kind, dtype, fields, "a red cat"))


def test_loras_of_the_text_encoder_count_while_text_is_encoded(tmp_path) -> None:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{layer}.lora_A.weight": torch.ones(1, 32), f"{layer}.lora_B.weight": torch.ones(32, 1)}
    save_file(state, tmp_path / "text.safetensors")
    lora = Lora.load(tmp_path / "text.safetensors")
    plain, ours = (Animator(tiny_pipeline(), tiny_motion(), loras=loras) for loras in (None, {lora: 5.0}))
    request = plain.request("a cat", seed=1)
    assert not torch.equal(ours.sample(request).tensor, plain.sample(request).tensor)


def options(steps: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {"num_inference_steps": steps, "guidance_scale": 3.0, "generator": generator}


def test_a_prompt_for_each_frame_is_that_frame_alone() -> None:
    pipeline = tiny_pipeline()
    texts = [Conditioner(pipeline).pipeline_arguments(prompt) for prompt in ("a cat", "a blue dog")]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    both = {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
    together = sample(pipeline, both, noise, **options())
    for number, text in enumerate(texts):
        alone = sample(pipeline, text, noise[number : number + 1], **options())
        assert torch.allclose(together[number], alone[0], atol=1e-5)


def test_nothing_is_left_behind_and_steps_are_told() -> None:
    pipeline = tiny_pipeline()
    text, told = Conditioner(pipeline).pipeline_arguments("a cat"), []
    before, noise = pipeline.scheduler, torch.randn(2, 4, 8, 8)
    other = DDIMScheduler.from_config(before.config, **LINEAR)
    drawn = sample(pipeline, text, noise, **options(), scheduler=other, on_step=lambda *n: told.append(n))
    assert told == [(1, 2), (2, 2)] and pipeline.scheduler is before
    assert drawn.shape == (2, 4, 8, 8) and not torch.equal(drawn, sample(pipeline, text, noise, **options()))
    pipeline.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(SamplingError, match=r"step 1 of 2 .* would be black: too hot$"):
        sample(pipeline, text, noise, **options(), scheduler=other, causes=lambda: "too hot")
    with pytest.raises(SamplingError, match=r"would be black\.$"):
        sample(pipeline, text, noise, **options())
    assert pipeline.scheduler is before
    assert not (pipeline.unet._forward_hooks or pipeline.unet._forward_pre_hooks)
