"""Textual inversion from images on disk to a file that stillmotion and diffusers load."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from endings import ends_the_same, state_of
from safetensors.torch import load_file

from stillmotion.checkpoints.base_model import load_base
from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.textual_inversion import load_textual_inversions
from stillmotion.errors import RequestError, TrainingError
from stillmotion.training import train
from stillmotion.training.config.images import TextualInversionConfig
from stillmotion.training.engine.rng import sample_rngs
from stillmotion.training.targets.textual_inversion import TEMPLATES, TextualInversionTarget

PRODUCT = "embedding.safetensors"


@pytest.fixture
def configure(brief, images, tmp_path):
    own = {"images": images, "token": "<My-Dog>", "initializer_word": "dog"}

    def make(name, **fields):
        return TextualInversionConfig.parse(**(brief | own | {"output": tmp_path / name} | fields))

    return make


def make_target(config, log=lambda sentence: None):
    return TextualInversionTarget(config, Accelerator(cpu=True), log)


def drawn(pipeline, prompt="a <my-dog>"):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    options = {"width": 32, "height": 32, "num_inference_steps": 2, "output_type": "np"}
    return torch.from_numpy(pipeline(prompt, generator=generator, **options).images)


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_word_draws_in_diffusers_what_it_draws_here(configure, sd15_folder, vectors):
    config = configure("run", vectors=vectors, learning_rate=0.5, validation_steps=6)
    outcome = train(config)
    assert (outcome.output / "samples" / "step-00000006.png").exists()
    state = load_file(outcome.output / PRODUCT)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"<my-dog>": (vectors, 32)}
    assert torch.equal(state["<my-dog>"].flatten(), state_of(outcome.output)["weights"])

    plain = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
    before = drawn(plain, "a dog")
    plain.load_textual_inversion(outcome.output / PRODUCT)
    ours = load_base(sd15_folder)
    assert load_textual_inversions(ours, [read_embedding(outcome.output / PRODUCT)]) == ("<my-dog>",)
    assert torch.equal(drawn(plain), drawn(ours))
    assert torch.equal(drawn(plain, "a dog"), before) and not torch.allclose(drawn(plain), before, atol=1e-3)


def test_the_word_in_training_is_the_word_in_the_file(configure, sd15_folder):
    """Oracle: embeddings of a prompt, with the hook on and with the finished word in plain diffusers."""
    config = configure("run", vectors=2, learning_rate=0.1)
    outcome = train(config)
    target = make_target(config)
    for part, tensor in target.parameters().items():
        tensor.data = load_file(outcome.output / PRODUCT)["<my-dog>"]
        assert part == "text_encoder"
    plain = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
    plain.load_textual_inversion(outcome.output / PRODUCT)
    wanted = plain.encode_prompt("a red <my-dog> apple", "cpu", 1, False)[0]
    with torch.no_grad():
        (said,) = target.denoiser.text.encode("a red <my-dog> apple")
    assert torch.allclose(said, wanted, atol=1e-6)


def test_sdxl_learns_it_in_both_text_encoders(configure, sdxl_folder):
    outcome = train(configure("run", base=str(sdxl_folder), vectors=2, learning_rate=0.5))
    state = load_file(outcome.output / PRODUCT)
    assert state.keys() == {"clip_l", "clip_g"} and not torch.equal(state["clip_l"], state["clip_g"])
    plain, ours = StableDiffusionXLPipeline.from_pretrained(sdxl_folder), load_base(sdxl_folder)
    for name, end in (("clip_l", ""), ("clip_g", "_2")):
        parts = {kind: getattr(plain, kind + end) for kind in ("tokenizer", "text_encoder")}
        plain.load_textual_inversion(state[name], token="<my-dog>", **parts)
    assert load_textual_inversions(ours, [read_embedding(outcome.output / PRODUCT)]) == ("<my-dog>",)
    assert torch.equal(drawn(plain), drawn(ours))


def test_only_the_vectors_learn(configure):
    config = configure("run", max_train_steps=60, batch_size=2, learning_rate=0.1)
    target = make_target(config)
    fixed = sample_rngs(99, 0, 0, 16, 1)
    loss = target.loss(fixed).value
    loss.backward()
    assert target.word.vectors["text_encoder"].grad.abs().max() > 0
    assert all(p.grad is None for part in target.denoiser.parts.values() for p in part.parameters())
    outcome = train(config)
    target.word.vectors["text_encoder"].data = load_file(outcome.output / PRODUCT)["<my-dog>"]
    with torch.no_grad():
        assert target.loss(fixed).value < loss


def test_it_starts_as_the_known_word(configure):
    target = make_target(configure("run", vectors=2))
    table = target.denoiser.pipeline.text_encoder.get_input_embeddings().weight
    known = target.denoiser.pipeline.tokenizer("dog", add_special_tokens=False).input_ids
    assert torch.equal(target.word.vectors["text_encoder"], table[known * 2])
    one = make_target(configure("one", learnable="style"))
    with torch.no_grad():
        new, old = (one.denoiser.text.encode(f"a {word} house")[0] for word in ("<my-dog>", "dog"))
    assert torch.equal(new, old)


def test_sentences_have_the_word(configure, images, tmp_path):
    for path in images.glob("*.png"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "set" / "red.txt").write_text("a red <MY-dog>\na red thing\n", "utf-8")
    target = make_target(configure("run", images=tmp_path / "set"))
    said = {clip.item.path.stem: target.captions(clip.item) for clip in target.dataset.clips}
    assert said["red"] == ("a red <my-dog>",)
    assert said["blue"] == tuple(line.replace("{}", "<my-dog>") for line in TEMPLATES["object"])
    own = make_target(configure("own", templates=["{}, flat style"]))
    assert own.captions(own.dataset.clips[0].item) == ("<my-dog>, flat style",)


@pytest.mark.parametrize("step, vectors", [(2, 1), (5, 2)])
def test_interrupted_anywhere_it_ends_the_same(configure, step, vectors):
    fields = {"max_train_steps": 7, "checkpoint_steps": 3, "vectors": vectors, "batch_size": 2}
    ends_the_same(lambda name: configure(name, **fields), step, PRODUCT)


def test_a_usual_rate_is_no_leap(configure, capsys):
    """Vectors of words are short, so that even good steps change them much."""
    train(configure("run"))
    assert "One step changed the weights" not in capsys.readouterr().err
    train(configure("high", learning_rate=0.5))
    assert "One step changed the weights" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_is_said(configure):
    with pytest.raises(TrainingError, match=r"initializer_word 'rocket dog' is 2 tokens .* --vectors 2"):
        make_target(configure("a", initializer_word="rocket dog"))
    with pytest.raises(TrainingError, match="token is 'dog', which the text encoder knows .* '<dog>'"):
        make_target(configure("b", token="Dog", initializer_word="cat"))
    with pytest.raises(RequestError, match="has no {} where the word goes"):
        configure("c", templates=["a photo"])
    with pytest.raises(RequestError, match="has spaces: give one word"):
        configure("d", token="my dog")
