"""Jobs without a terminal: files, events, and a decoder that loads the VAE alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_vae

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.ldm.write import save_single_file
from stillmotion.errors import Mismatch, OutputError
from stillmotion.request import Request
from stillmotion.sampling import jobs
from stillmotion.sampling.animator import Animator
from stillmotion.sampling.latents import Latents
from stillmotion.sampling.output_file import Target
from stillmotion.video import Clip


def request_of(base: Path, motion: Path | str = "none", **fields: object) -> Request:
    frames = 1 if motion == "none" else 2
    given = {"seed": 7, "num_inference_steps": 1, "frames": frames, "dtype": "float32"} | fields
    return Request.parse(prompt="a rocket", base=str(base), motion=str(motion), **given)


@pytest.fixture
def no_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a UNet or a text encoder fails the test."""
    from stillmotion.checkpoints import modules

    made = modules._made

    def only_vaes(kind: str, settings: dict) -> torch.nn.Module:
        assert kind == "AutoencoderKL", f"{kind} was built"
        return made(kind, settings)

    monkeypatch.setattr(modules, "_made", only_vaes)


def test_a_job_tells_what_happens_and_writes_its_files(tmp_path, sd15_folder, motion_folder) -> None:
    told: list[jobs.Event] = []
    job = jobs.Job.of(request_of(sd15_folder, motion_folder), Target(str(tmp_path / "x.webp")), count=2)
    written = jobs.run(job, told.append)
    assert [each.path.name for each in written] == ["x-seed7.webp", "x-seed8.webp", "x.webp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(each.path.name for each in written)
    assert [type(event).__name__ for event in told if not isinstance(event, (jobs.Step, jobs.Note))] == [
        *("Loading", "Loaded", "Written", "Written", "Written")
    ]
    steps = [event for event in told if isinstance(event, jobs.Step)]
    assert {(step.clip, step.clips) for step in steps} == {(1, 2), (2, 2)}
    assert steps[0] == jobs.Step("sampling", 0, 1, 1, 2) and steps[-1].stage == "decoding"


def test_a_job_is_stopped_by_its_callback_and_goes_on_from_the_latents(
    tmp_path, sd15_folder, motion_folder
) -> None:
    class Stop(Exception):
        pass

    told: list[jobs.Event] = []

    def stop(event: jobs.Event) -> None:
        told.append(event)
        if isinstance(event, jobs.Step) and event.stage == "decoding":
            raise Stop

    target = Target(str(tmp_path / "x.webp"), quality=100)
    with pytest.raises(Stop):
        jobs.run(jobs.Job.of(request_of(sd15_folder, motion_folder), target), stop)
    assert told[-1] == jobs.Interrupted(tmp_path / "x.webp.latents.safetensors")
    clip = jobs.finish(Latents.load(told[-1].latents), target, "cpu")
    whole = Animator.load(str(sd15_folder), str(motion_folder), dtype="float32").animate(clip.request)
    assert np.array_equal(clip.frames, whole.frames) and np.array_equal(
        Clip.load(target.path).frames, clip.frames
    )


@pytest.mark.parametrize("kind", ["folder", "single file", "bundled", "other VAE"])
def test_decoding_builds_only_the_vae(
    kind, tmp_path, sd15_folder, emoji_folder, request, monkeypatch
) -> None:
    base, fields = sd15_folder, {}
    if kind == "single file":
        base = save_single_file(load_base(sd15_folder), tmp_path / "base.safetensors")
    if kind == "bundled":
        monkeypatch.setattr("stillmotion.sampling.loading.bundled_folder", lambda: emoji_folder)
        base = None
    if kind == "other VAE":
        tiny_vae(seed=9).save_pretrained(tmp_path / "other")
        fields = {"vae": str(tmp_path / "other")}
    request.getfixturevalue("no_unet")
    asked = Request.parse(prompt="x", base=base and str(base), frames=2, fps=8, **fields)
    latents = Latents(torch.randn(2, 4, 4, 4, generator=torch.manual_seed(0)), asked)
    clip = jobs.finish(latents, Target(str(tmp_path / "x.webp")), "cpu")
    vae = tiny_vae(seed=9) if fields else None
    if vae is not None:
        assert np.array_equal(clip.frames, latents.decode(vae).frames)
    assert clip.frames.shape == (2, 8, 8, 3) and clip.request == asked


def test_latents_of_other_channels_are_refused(tmp_path) -> None:
    latents = Latents(torch.zeros(2, 3, 4, 4), Request(prompt="x", frames=2, fps=8))
    with pytest.raises(Mismatch, match="3 channels, but the VAE of this base takes 4"):
        latents.decode(tiny_vae())


def test_files_of_several_are_checked_before_anything_is_loaded(tmp_path) -> None:
    (tmp_path / "x-seed8.gif").write_text("precious")
    job = jobs.Job.of(request_of(tmp_path / "nowhere"), Target(str(tmp_path / "x.gif")), count=2)
    with pytest.raises(OutputError, match=r"x-seed8\.gif exists"):
        jobs.run(job)


def test_clips_of_one_seed_are_numbered() -> None:
    one = Request(prompt="a", seed=1)
    job = jobs.Job((one, one.replace(prompt="b")), Target("x.gif"))
    assert [target.output for target in job.targets()] == ["x-1.gif", "x-2.gif"]


def test_clips_of_two_sizes_are_not_put_side_by_side(tmp_path, sd15_folder, motion_folder) -> None:
    one = request_of(sd15_folder, motion_folder)
    told: list[jobs.Event] = []
    job = jobs.Job((one, one.replace(width=24, seed=8)), Target(str(tmp_path / "x.webp")))
    assert [each.path.name for each in jobs.run(job, told.append)] == ["x-seed7.webp", "x-seed8.webp"]
    assert any(isinstance(event, jobs.Note) and "side by side" in event.text for event in told)
    assert sum(isinstance(event, jobs.Loading) for event in told) == 1
