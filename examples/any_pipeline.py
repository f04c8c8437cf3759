"""Motion on a plain diffusers pipeline: the batch of images becomes a clip.

python examples/any_pipeline.py
"""

import torch
from diffusers import StableDiffusionPipeline

import stillmotion as sm

FRAMES = 16
folder = sm.installed_models()["emoji"]  # any diffusers folder will do
pipe = StableDiffusionPipeline.from_pretrained(folder)

with sm.attach(pipe, motion=folder / "motion", frames=FRAMES):
    images = pipe(
        "a butterfly, flat style",
        num_images_per_prompt=FRAMES,
        generator=torch.Generator().manual_seed(3),
        guidance_scale=5.0,
    ).images

sm.Clip.from_pil(images, fps=8.0).save("butterfly.webp", overwrite=True)
print(f"{len(images)} frames in butterfly.webp; the pipeline is what it was before")
