"""The motion target from clips on disk to weights that stillmotion and diffusers load."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDPMScheduler, MotionAdapter
from endings import sheet_size
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_scheduler

from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.diffusion.noise import progressive_noise
from stillmotion.diffusion.schedule import ANIMATEDIFF
from stillmotion.errors import DataError, RequestError, TrainingError
from stillmotion.training import train_motion
from stillmotion.training.denoiser import training_scheduler
from stillmotion.training.engine.checkpoint import checkpoints
from stillmotion.training.engine.logger import read_losses
from stillmotion.training.engine.rng import sample_rngs
from stillmotion.training.targets.motion import MotionTarget


def weights(output):
    return load_file(checkpoints(output)[-1] / "state.safetensors")


def make_target(config):
    from accelerate import Accelerator

    return MotionTarget(config, Accelerator(cpu=True), lambda sentence: None)


def test_from_clips_to_weights(configure):
    steps = []
    outcome = train_motion(configure("run", validation_steps=6, validation_inference_steps=2), steps.append)
    assert outcome.finished and outcome.step == 6
    assert [row.step for row in steps] == [1, 2, 3, 4, 5, 6]
    assert read_losses(outcome.output / "loss.csv") == steps

    folder = outcome.output / "motion"
    model, adapter = MotionModel.load(folder), MotionAdapter.from_pretrained(folder)
    ema = weights(outcome.output)["ema"]
    assert torch.equal(torch.cat([p.flatten() for p in model.parameters()]), ema)
    assert adapter.config.motion_max_seq_length == 32 and adapter.config.use_motion_mid_block
    assert all(
        model.state_dict()[name].any() for name in model.state_dict() if name.endswith("proj_out.weight")
    )

    card = json.loads((folder / "stillmotion.json").read_text())
    betas = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
    assert card["schedule"] == betas | {"noise_alpha": 0.0}
    assert card["defaults"] == {"frames": 4, "width": 16, "height": 16, "fps": 10.0}

    with Image.open(outcome.output / "samples" / "step-00000006.png") as sheet:
        assert sheet.size == sheet_size(rows=4, columns=4)
    with Image.open(outcome.output / "samples" / "step-00000006.webp") as moving:
        assert moving.n_frames == 4


def test_training_lowers_the_loss(configure):
    config = configure("run", max_train_steps=60, batch_size=2, learning_rate=3e-3, text_dropout=0)
    target = make_target(config)
    fixed = sample_rngs(99, 0, 0, 16, 1)
    with torch.no_grad():
        before = target.loss(fixed).value.item()
    outcome = train_motion(config)
    target.motion.load_state_dict(MotionModel.load(outcome.output / "motion").state_dict())
    with torch.no_grad():
        assert target.loss(fixed).value.item() < 0.9 * before


def test_the_first_loss_is_that_of_the_base_alone(configure):
    target = make_target(configure("run"))
    batch = sample_rngs(0, 0, 0, 2, 1)
    with torch.no_grad():
        attached = target.loss(batch).value
        target.attachment.detach()
        assert torch.equal(target.loss(batch).value, attached)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_schedulers_own_words(configure, prediction):
    """Oracle: diffusers' DDPMScheduler noises the same latents and gives the same target."""
    target = make_target(configure("run", prediction_type=prediction))
    batch = sample_rngs(0, 3, 0, 2, 1)
    oracle = DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    rows = [target.sample(rng) for rng in batch]
    captions, times = [row.caption for row in rows], torch.tensor([row.timestep for row in rows])
    sample, wanted = [], []
    for clean, eps, time in ((row.latents, row.noise, torch.tensor(row.timestep)) for row in rows):
        each = time.repeat(len(clean))
        sample.append(oracle.add_noise(clean, eps, each))
        wanted.append(eps if prediction == "epsilon" else oracle.get_velocity(clean, eps, each))
    with torch.no_grad():
        texts = torch.cat([target.pipeline.encode_prompt(c, "cpu", 1, False)[0] for c in captions])
        said = target.pipeline.unet(
            torch.cat(sample), times.repeat_interleave(4), texts.repeat_interleave(4, 0)
        ).sample
        loss = target.loss(batch)
    assert torch.allclose(loss.value, (said - torch.cat(wanted)).square().mean(), rtol=1e-4)
    assert torch.allclose(loss.spread, said.std() / torch.cat(wanted).std(), rtol=1e-4)


def test_noise_that_goes_on_is_trained_and_kept_and_goes_on_with_the_motion(configure, tmp_path):
    target = make_target(configure("run", noise_alpha=1.5))
    (rng,) = sample_rngs(0, 0, 0, 1, 1)
    sample = target.sample(rng)
    assert torch.equal(sample.noise, progressive_noise(rng.noise(*sample.latents.shape), 1.5))
    target.save(tmp_path / "made", {})
    again = make_target(configure("again", motion=str(tmp_path / "made" / "motion")))
    assert again.denoiser.noise_alpha == again.motion.family.schedule.noise_alpha == 1.5
    other = make_target(configure("other", motion=str(tmp_path / "made" / "motion"), noise_alpha=0))
    assert torch.equal(other.sample(rng).noise, rng.noise(*sample.latents.shape))


def test_one_timestep_per_clip_and_text_dropout(configure):
    target = make_target(configure("run", text_dropout=0.5))
    rows = [target.sample(rng) for rng in sample_rngs(0, 0, 0, 200, 1)]
    dropped = sum(row.caption == "" for row in rows)
    assert 70 < dropped < 130
    assert {row.caption for row in rows} == {""} | {
        f"a {c} rocket" for c in ("red", "blue", "green", "black")
    }
    assert min(row.timestep for row in rows) < 50 and max(row.timestep for row in rows) > 950


def test_only_the_timesteps_that_are_asked_for(configure):
    target = make_target(configure("run", min_timestep=400, max_timestep=700))
    times = [target.sample(rng).timestep for rng in sample_rngs(0, 0, 0, 200, 1)]
    assert 400 <= min(times) < 420 and 680 < max(times) < 700
    with pytest.raises(RequestError, match="min_timestep is 700, but must be below max_timestep"):
        configure("wrong", min_timestep=700, max_timestep=700)


def test_the_base_stays_as_it_is(configure):
    config = configure("run")
    before = {name: tensor.clone() for name, tensor in make_target(config).pipeline.unet.state_dict().items()}
    target = make_target(config)
    loss = target.loss(sample_rngs(0, 0, 0, 2, 1))
    for parameter in target.parameters().values():
        parameter.requires_grad_(True)
    loss = target.loss(sample_rngs(0, 0, 0, 2, 1))
    loss.value.backward()
    assert all(parameter.grad is None for parameter in target.pipeline.unet.parameters())
    after = target.pipeline.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_accumulation_is_a_larger_batch(configure):
    # of a seed where no gradient is all rounding error, which AdamW would make a whole step of
    many = train_motion(configure("many", batch_size=4, ema_decay=0, seed=5))
    few = train_motion(configure("few", batch_size=1, gradient_accumulation_steps=4, ema_decay=0, seed=5))
    assert many.loss == pytest.approx(few.loss, rel=1e-4)
    assert torch.allclose(weights(many.output)["weights"], weights(few.output)["weights"], atol=1e-4)
    single = train_motion(configure("single", batch_size=1, ema_decay=0, seed=5))
    assert not torch.allclose(weights(many.output)["weights"], weights(single.output)["weights"], atol=1e-3)


def test_gradient_checkpointing_changes_memory_only(configure):
    plain = train_motion(configure("plain", max_train_steps=3))
    checked = train_motion(configure("checked", max_train_steps=3, gradient_checkpointing=True))
    assert torch.allclose(weights(plain.output)["weights"], weights(checked.output)["weights"], atol=1e-5)


def test_bf16_computes_in_bf16_and_keeps_fp32(configure):
    outcome = train_motion(configure("bf16", precision="bf16"))
    reference = train_motion(configure("fp32"))
    state, wanted = weights(outcome.output), weights(reference.output)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert outcome.loss == pytest.approx(reference.loss, rel=0.03) and outcome.loss != reference.loss
    assert torch.nn.functional.cosine_similarity(state["adam.exp_avg"], wanted["adam.exp_avg"], dim=0) > 0.95


def test_training_goes_on_from_given_weights(configure):
    first = train_motion(configure("first", max_train_steps=2, ema_decay=0))
    start = MotionModel.load(first.output / "motion").state_dict()
    second = make_target(configure("second", motion=str(first.output / "motion"), frames=6, stride=1))
    assert all(torch.equal(tensor, start[name]) for name, tensor in second.motion.state_dict().items())
    assert (second.motion.family.sampling.frames, second.motion.family.sampling.fps) == (6, 20)


def test_sdxl_trains(configure, sdxl_folder):
    outcome = train_motion(
        configure(
            "run", base=str(sdxl_folder), max_train_steps=2, validation_steps=2, validation_inference_steps=2
        )
    )
    assert outcome.finished and (outcome.output / "samples" / "step-00000002.png").exists()


def test_noise_follows_the_config_and_the_rest_the_base(configure):
    base = tiny_scheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    ours = training_scheduler(base.config, configure("run"), ANIMATEDIFF)
    assert ours.config.beta_schedule == "linear" and base.config.beta_schedule == "scaled_linear"
    assert ours.config.prediction_type == "v_prediction" and ours.config.rescale_betas_zero_snr
    assert ours.config.timestep_spacing == "trailing" and ours.alphas_cumprod[-1] < 1e-6
    other = training_scheduler(
        base.config, configure("run", zero_terminal_snr=False, prediction_type="epsilon")
    )
    assert other.config.prediction_type == "epsilon" and other.alphas_cumprod[-1] > 1e-3


def test_bad_clips_are_counted_and_skipped(configure, clips, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in clips.iterdir():
        (mixed / path.name).write_bytes(path.read_bytes())
    (mixed / "page.gif").write_text("<html>404</html>")
    Image.new("RGB", (16, 16)).save(mixed / "still.webp")
    outcome = train_motion(configure("run", videos=mixed, max_train_steps=1))
    said = " ".join(capsys.readouterr().err.split())
    assert "2 files skipped" in said and "too short: 1 frames, 7 needed" in said and "4 clips" in said
    rows = [json.loads(line) for line in (outcome.output / "skipped.jsonl").read_text().splitlines()]
    assert {row["file"] for row in rows} == {str(mixed / "page.gif"), str(mixed / "still.webp")}


def test_none_readable_stops(configure, clips, tmp_path):
    with pytest.raises(DataError, match=r"4 x too short: 12 frames, 61 needed\. A smaller stride"):
        train_motion(configure("run", frames=16, stride=4))
    assert make_target(configure("loop", frames=16, stride=4, loop=True)).clips
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "page.gif").write_text("<html>404</html>")
    with pytest.raises(DataError, match="None of the 1 clips"):
        train_motion(configure("run", videos=tmp_path / "only"))


def test_captions_all_the_same_are_noticed(configure, clips, tmp_path, capsys):
    for path in clips.glob("*.webp"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).with_suffix(".txt").write_text("a thing")
    train_motion(configure("run", videos=tmp_path, max_train_steps=1, learning_rate=0.5))
    said = " ".join(capsys.readouterr().err.split())
    assert "all captions are 'a thing'" in said and "learning_rate 0.5 is very high" in said


def test_nonfinite_loss_names_the_last_good_checkpoint(configure, monkeypatch):
    plain = MotionTarget.loss

    def explode(self, batch):
        loss = plain(self, batch)
        if batch[0].number == 4:
            loss.value = loss.value * float("nan")
        return loss

    monkeypatch.setattr(MotionTarget, "loss", explode)
    config = configure("run", checkpoint_steps=2)
    with pytest.raises(TrainingError, match=r"At step 5 the loss is nan.*step-00000004"):
        train_motion(config)
    assert weights(config.output)["weights"].isfinite().all()


def test_tensorboard_gets_losses_and_samples(configure):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure("run", tensorboard=True, log_steps=2, validation_steps=4, validation_inference_steps=1)
    outcome = train_motion(config)
    (events,) = (outcome.output / "tensorboard").glob("events.*")
    log = EventAccumulator(str(events))
    log.Reload()
    assert [event.step for event in log.Scalars("loss")] == [2, 4, 6]
    assert [event.step for event in log.Images("samples")] == [0, 4]


def test_tensorboard_missing_is_a_sentence(configure, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="tensorboard is asked for but not installed"):
        train_motion(configure("run", tensorboard=True))
