"""Families of motion modules: rows of a table.

The facts are those of the original code and of the users' files: anatomy and places of the modules from the
AnimateDiff repository (v1, v2, v3, SDXL-beta), positions and schedules from each model's own release.
"""

from __future__ import annotations

from dataclasses import replace

from stillmotion.motion.config import MotionConfig

V1 = MotionConfig("sd15-v1", positions=24, resnet_norm="pooled")


V2 = replace(V1, name="sd15-v2", mid=True, positions=32, resnet_norm="per-frame")


V3 = replace(V2, name="sd15-v3", mid=False)


PIA = replace(V3, name="pia", conv_in=9)


LCM = replace(V2, name="animatelcm", positions=64, scheduler="lcm", num_inference_steps=8, guidance_scale=1.5)


LIGHTNING = replace(
    V2,
    name="lightning",
    scheduler="euler",
    timestep_spacing="trailing",
    num_inference_steps=4,
    guidance_scale=1.0,
)


SDXL = MotionConfig(
    "sdxl-beta",
    channels=(320, 640, 1280),
    layers=(2, 2, 2),
    heads=(8, 8, 8),
    motion_norm="pooled",
    base="sdxl",
    beta_schedule="scaled_linear",
    beta_end=0.020,
    scheduler="euler",
    num_inference_steps=100,
    guidance_scale=8.5,
    width=1024,
    height=1024,
)


HOTSHOT = replace(
    SDXL,
    name="hotshot-xl",
    positions=24,
    motion_norm="per-frame",
    beta_end=0.012,
    scheduler="euler_a",
    num_inference_steps=30,
    frames=8,
    width=512,
    height=512,
)


EMOJI = MotionConfig(
    "emoji",
    channels=(128, 256, 256),
    layers=(1, 1, 1),
    heads=(8, 8, 8),
    mid=True,
    base="emoji",
    timestep_spacing="trailing",
    guidance_scale=3.0,
    width=128,
    height=128,
)


FAMILIES: dict[str, MotionConfig] = {
    spec.name: spec for spec in (V1, V2, V3, SDXL, HOTSHOT, LCM, LIGHTNING, PIA, EMOJI)
}
