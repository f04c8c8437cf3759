"""Our LoRAs against diffusers' loader, peft's layers and lycoris-lora's modules, on random weights.

Each oracle computes in its own code from the same file; ours acts by hooks on the same network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lycoris
import peft
import pytest
import torch
from loras import random_parts
from safetensors.torch import save_file
from tiny import tiny_pipeline, tiny_unet
from torch import Tensor, nn

from stillmotion.checkpoints.lora.layouts import parse
from stillmotion.checkpoints.lora_model import Lora

TOLERANCE = 1e-5
FILE = "pytorch_lora_weights.safetensors"


class OfUnet:
    """All of a pipeline that a LoRA of the UNet needs."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


@torch.no_grad()
def unet_output(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    width = unet.config.cross_attention_dim
    sizes = {"text_embeds": draw(2, 32), "time_ids": draw(2, 6)} if width == 64 else None
    return unet(draw(2, 4, 8, 8), 5, draw(2, 7, width), added_cond_kwargs=sizes).sample


@torch.no_grad()
def outputs(pipeline: Any) -> list[Tensor]:
    """What the UNet and each text encoder make of the same input."""
    tokens = torch.arange(14).view(2, 7)
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    read = [e(tokens, output_hidden_states=True) for e in encoders if e is not None]
    projected = [each.text_embeds for each in read if hasattr(each, "text_embeds")]
    return [unet_output(pipeline.unet), *(each.hidden_states[-1] for each in read), *projected]


def assert_close(ours: list[Tensor], theirs: list[Tensor], plain: list[Tensor]) -> None:
    for mine, other, before in zip(ours, theirs, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=TOLERANCE, atol=TOLERANCE)
        assert not torch.allclose(mine, before, atol=1e-2), "the LoRA must do something"


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("convolutions", [False, True], ids=["lora", "locon"])
@pytest.mark.parametrize(
    ("layout", "alpha"),
    [
        ("kohya", lambda path: 1.5),
        ("peft", lambda path: None),
        ("peft", lambda path: 2.0 if "to_q" in path else 1.0),
        ("diffusers", lambda path: None),
        ("diffusers", lambda path: 2.0 if "to_k" in path else None),
    ],
    ids=["kohya", "peft", "peft alphas", "diffusers", "diffusers alphas"],
)
def test_files_act_as_in_diffusers(kind, convolutions, layout, alpha, tmp_path) -> None:
    pipeline, theirs = tiny_pipeline(kind), tiny_pipeline(kind)
    parts = random_parts(pipeline, alpha=alpha, convolutions=convolutions, spread=0.2)
    path = Lora(parts).save(tmp_path / FILE, layout)
    before = outputs(pipeline)
    with Lora.load(path).attach(pipeline):
        ours = outputs(pipeline)
    theirs.load_lora_weights(str(tmp_path))
    assert_close(ours, outputs(theirs), before)
    assert all(map(torch.equal, outputs(pipeline), before))


def test_each_layer_has_the_alpha_of_its_own_in_kohyas_files(tmp_path) -> None:
    """By arithmetic: diffusers 0.42.1 gives the UNet's attentions the commonest alpha of the file."""
    pipeline, merged = tiny_pipeline(), tiny_pipeline()
    parts = random_parts(pipeline, alpha=lambda path: 4.0 if "to_k" in path else 1.0, spread=0.2)
    for path, delta in parts["unet"].items():
        down, up = delta.tensors["down"], delta.tensors["up"]
        merged.unet.get_submodule(path).weight.data += delta.alpha / down.shape[0] * up @ down
    with Lora.load(Lora(parts).save(tmp_path / FILE, "kohya")).attach(pipeline):
        ours = unet_output(pipeline.unet)
    torch.testing.assert_close(ours, unet_output(merged.unet), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "convolutions"])
def test_dora_acts_as_in_diffusers(convolutions, tmp_path) -> None:
    pipeline, theirs = tiny_pipeline("sdxl"), tiny_pipeline("sdxl")
    parts = random_parts(pipeline, ("unet",), convolutions=convolutions, magnitude="rows", spread=0.2)
    before = unet_output(pipeline.unet)
    for layout in ("peft", "kohya"):
        with Lora.load(Lora(parts).save(tmp_path / f"{layout}.safetensors", layout)).attach(pipeline):
            ours = unet_output(pipeline.unet)
        theirs.unload_lora_weights()
        theirs.load_lora_weights(str(tmp_path), weight_name="peft.safetensors")
        assert_close([ours], [unet_output(theirs.unet)], [before])


@pytest.mark.parametrize("scheme", ["base_model.model.", "base_model.model.unet."])
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=3, lora_alpha=3, init_lora_weights=False),
        peft.LoraConfig(r=3, lora_alpha=3, init_lora_weights=False, use_dora=True),
        peft.LoHaConfig(r=3, alpha=3, init_weights=False),
        peft.LoKrConfig(r=3, alpha=3, init_weights=False),
        peft.LoKrConfig(r=3, alpha=3, init_weights=False, decompose_both=True),
    ],
    ids=["lora", "dora", "loha", "lokr", "lokr both"],
)
def test_files_act_as_in_peft(config, scheme) -> None:
    torch.manual_seed(5)
    config.target_modules = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    plain = tiny_unet()
    theirs = peft.get_peft_model(tiny_unet(), config)
    for parameter in (p for name, p in theirs.named_parameters() if "magnitude" in name):
        parameter.data *= 1.2
    state = peft.get_peft_model_state_dict(theirs)
    state = {key.replace("base_model.model.", scheme): tensor for key, tensor in state.items()}
    before = unet_output(plain)
    with Lora(parse(state)).attach(OfUnet(plain)):
        ours = unet_output(plain)
    assert_close([ours], [unet_output(theirs.base_model.model)], [before])


LYCORIS: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "lora tucker": {"algo": "lora", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr tucker": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "lokr both": {"algo": "lokr", "decompose_both": True},
    "lokr whole": {"algo": "lokr", "full_matrix": True},
    "dora": {"algo": "lora", "dora_wd": True, "wd_on_out": True},
    "dora of columns": {"algo": "lora", "dora_wd": True, "wd_on_out": False},
    "dora of loha": {"algo": "loha", "dora_wd": True},
    "full": {"algo": "full"},
}


def lycoris_on(
    unet: nn.Module,
    prefix: str,
    options: Mapping[str, Any],
    weight: float = 1.0,
    exclude: Sequence[str] = (".*norm.*",),
) -> Any:
    """lycoris-lora's own modules, with random weights, applied to the attentions and resnets of a UNet."""
    targets = ["Attention", "ResnetBlock2D"]
    lycoris.LycorisNetwork.apply_preset(
        {"target_module": targets, "lora_prefix": prefix, "exclude_name": list(exclude)}
    )
    torch.manual_seed(7)
    network = lycoris.create_lycoris(
        unet, weight, linear_dim=2, linear_alpha=1.0, conv_dim=2, conv_alpha=1.0, **options
    )
    network.apply_to()
    for name, parameter in network.named_parameters():
        if "dora" not in name:
            parameter.data += torch.randn_like(parameter) * 0.15
        else:
            parameter.data *= 1.2
    return network


@pytest.mark.parametrize("prefix", ["lycoris", "lora_unet"])
@pytest.mark.parametrize("name", LYCORIS)
def test_files_act_as_in_lycoris(name, prefix, tmp_path: Path) -> None:
    plain, changed = tiny_unet(), tiny_unet()
    network = lycoris_on(changed, prefix, LYCORIS[name]).eval()
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    save_file(state, tmp_path / "l.safetensors")
    lora, before = Lora.load(tmp_path / "l.safetensors"), unet_output(plain)
    with lora.attach(OfUnet(plain)):
        ours = unet_output(plain)
    assert_close([ours], [unet_output(changed)], [before])
    for path, delta in lora.parts["unet"].items():
        layer = plain.get_submodule(path)
        layer.weight.data = delta.apply(layer.weight)
        if delta.bias is not None:
            layer.bias.data += delta.bias
    torch.testing.assert_close(unet_output(plain), ours, rtol=TOLERANCE, atol=TOLERANCE)
