"""Motion LoRAs of a camera: the shots they are made from, and what is to be learnt from each."""

from __future__ import annotations

import pytest
import torch
from lora_targets import gradients, make_target, shaken
from PIL import Image

from stillmotion.diffusion import objectives
from stillmotion.training.engine.rng import sample_rngs


def test_shots_of_a_camera_are_made_once_and_differ(configure_lora, clips, tmp_path):
    stills = tmp_path / "stills"
    stills.mkdir()
    for path in clips.glob("*.webp"):
        with Image.open(path) as image:
            image.convert("RGB").save(stills / f"{path.stem}.jpg")
    config = configure_lora(videos=stills, camera="zoom-in", camera_variants=3, cache=tmp_path / "latents")
    target = make_target(config)
    files = {clip.file: clip.file.stat().st_mtime_ns for clip in target.clips}
    assert len(files) == 4 * 3 and {clip.length for clip in target.clips} == {4}
    assert {clip.item.captions for clip in target.clips} == {
        (f"{colour} square",) for colour in ("red", "blue", "green", "black")
    }
    again = make_target(configure_lora("again", **config.model_dump(exclude={"output"})))
    assert {clip.file: clip.file.stat().st_mtime_ns for clip in again.clips} == files
    other = make_target(configure_lora(videos=stills, camera="zoom-out", cache=tmp_path / "latents"))
    assert not {clip.file for clip in other.clips} & files.keys()
    assert other.data_key() != target.data_key() == again.data_key()


def test_a_shot_of_half_a_move_is_learnt_at_half_the_weight(configure_lora):
    target = shaken(make_target(configure_lora(camera="pan-left", camera_variants=2)))
    batch = sample_rngs(0, 0, 0, 8, 1)
    parts = [target.clips[rng.item(len(target.clips))].item.part for rng in batch]
    assert set(parts) == {1.0, 0.5}
    together = gradients(target, target.loss(batch).value)
    apart = []
    for rng, part in zip(batch, parts, strict=True):
        with target.lora_params.scaled(part):
            prediction = target.denoiser.predict([target.sample(rng)])
            apart.append(gradients(target, target.motion_loss(prediction, [rng]) / part**2))
    for name, gradient in together.items():
        assert torch.allclose(gradient, sum(each[name] for each in apart) / len(batch), atol=1e-6)
        assert not torch.allclose(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_from_an_input_that_stands_still_the_move_is_wanted(configure_lora, prediction_type):
    """What is wanted takes the noisy input, one frame all the time, to the latents of the clip."""
    options = {"camera": "pan-left", "prediction_type": prediction_type, "min_timestep": 400}
    target = make_target(configure_lora(static_input_fraction=1.0, **options))
    plain = make_target(configure_lora("plain", **options))
    for rng in sample_rngs(0, 0, 0, 4, 1):
        sample, seen = target.sample(rng), plain.sample(rng)
        assert seen.input_latents is None and torch.equal(seen.latents, sample.latents)
        assert all(torch.equal(frame, sample.latents[2]) for frame in sample.input_latents)
        assert not torch.equal(sample.latents[0], sample.latents[2])
        alpha_bar = target.denoiser.alphas_cumprod[sample.timestep]
        noisy = objectives.add_noise(sample.input_latents, sample.noise, alpha_bar)
        wanted = target.denoiser.predict([sample]).target[0]
        noise = (
            alpha_bar.sqrt() * wanted + (1 - alpha_bar).sqrt() * noisy
            if prediction_type == "v_prediction"
            else wanted
        )
        arrived = (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
        assert torch.allclose(arrived, sample.latents, atol=1e-4)


def test_those_that_see_the_move_learn_at_all_timesteps(configure_lora):
    target = make_target(
        configure_lora(camera="pan-left", static_input_fraction=0.5, min_timestep=600, max_timestep=700)
    )
    samples = [target.sample(rng) for rng in sample_rngs(0, 0, 0, 64, 1)]
    unseen = [sample.timestep for sample in samples if sample.input_latents is not None]
    seen = [sample.timestep for sample in samples if sample.input_latents is None]
    assert 16 < len(unseen) < 48 and 600 <= min(unseen) <= max(unseen) < 700
    assert min(seen) < 300 and max(seen) > 800
