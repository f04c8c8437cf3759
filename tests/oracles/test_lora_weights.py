"""Every algorithm at several weights against lycoris-lora and peft, attached and merged; folders of peft.

In tests/oracles/test_loras.py the names of files are compared; here the arithmetic of weights and configs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from test_loras import OfUnet, lycoris_on, unet_output
from tiny import tiny_unet
from torch import Tensor, nn

from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.merge import bake
from stillmotion.errors import Damaged, Mismatch, WeightsError, WrongKind

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
WEIGHTS = (0.5, 1.0, -0.7)

LYCORIS: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "lora tucker": {"algo": "lora", "use_tucker": True},
    "lora scalar": {"algo": "lora", "use_scalar": True},
    "lora rslora": {"algo": "lora", "rs_lora": True},
    "loha": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "glora": {"algo": "glora"},
    "ia3": {"algo": "ia3"},
    "ia3 of inputs": {"algo": "ia3", "train_on_input": True},
    "oft": {"algo": "diag-oft"},
    "oft constrained": {"algo": "diag-oft", "constraint": 0.001},
    "boft": {"algo": "boft"},
    "boft rescaled": {"algo": "boft", "rescaled": True},
    "full": {"algo": "full"},
    "norm": {"algo": "lora", "train_norm": True},
}


class Pipeline(OfUnet):
    """What `bake` asks of a pipeline."""

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.unet}


def assert_acts_as(lora: Lora, theirs: Tensor, weight: float, merges: bool = True) -> None:
    """Attached and merged as they have it, another thing than nothing, and off again bit for bit."""
    unet = tiny_unet()
    before = unet_output(unet)
    with lora.attach(OfUnet(unet), weight=weight):
        ours = unet_output(unet)
    assert torch.equal(unet_output(unet), before)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert not torch.allclose(ours, before, atol=1e-3)
    with lora.attach(OfUnet(unet), weight=0.0):
        assert torch.equal(unet_output(unet), before)
    with lora.attach(OfUnet(unet), weight={"0": weight, "1": 0.0}, frames=2):
        frames = unet_output(unet)
    torch.testing.assert_close(frames[0], ours[0], **TOLERANCE)
    torch.testing.assert_close(frames[1], before[1], **TOLERANCE)
    if not merges:
        with pytest.raises(Mismatch, match="adds a bias to a Linear of the model that has none"):
            bake(Pipeline(unet), {lora: weight})
        return
    bake(Pipeline(unet), {lora: weight})
    torch.testing.assert_close(unet_output(unet), ours, **TOLERANCE)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", LYCORIS)
def test_weights_as_in_lycoris(name: str, weight: float, tmp_path: Path) -> None:
    changed = tiny_unet()
    norms = LYCORIS[name].get("train_norm", False)
    network = lycoris_on(changed, "lora_unet", LYCORIS[name], weight, [] if norms else [".*norm.*"]).eval()
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    assert any(key.endswith("w_norm") for key in state) == norms
    save_file(state, tmp_path / "l.safetensors")
    lora = Lora.load(tmp_path / "l.safetensors")
    assert_acts_as(lora, unet_output(changed), weight)
    again = Lora.load(lora.save(tmp_path / "again.safetensors"))
    unet = tiny_unet()
    with lora.attach(OfUnet(unet)):
        ours = unet_output(unet)
    with again.attach(OfUnet(unet)):
        assert torch.equal(unet_output(unet), ours)


TARGETS = ["to_q", "to_out.0", "conv1", "conv_shortcut"]
PEFT: dict[str, Callable[[], peft.PeftConfig]] = {
    "alpha": lambda: peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False),
    "alpha 0": lambda: peft.LoraConfig(
        r=4, lora_alpha=0, init_lora_weights=False, alpha_pattern={"conv1": 3}
    ),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=3, init_lora_weights=False, use_rslora=True),
    "patterns": lambda: peft.LoraConfig(
        r=4,
        lora_alpha=3,
        init_lora_weights=False,
        use_rslora=True,
        rank_pattern={r"down_blocks\.0.*to_q": 2, "conv1": 3},
        alpha_pattern={"^mid_block.*": 7, "attn1.to_q": 1, "to_q": 9},
    ),
    "bias of lora_B": lambda: peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, lora_bias=True),
    "biases": lambda: peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, bias="all"),
    "saved modules": lambda: peft.LoraConfig(
        r=2, lora_alpha=3, init_lora_weights=False, modules_to_save=["conv_in", "conv_norm_out"]
    ),
    "dora": lambda: peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, use_dora=True),
    "adalora": lambda: peft.AdaLoraConfig(lora_alpha=5, total_step=10, init_lora_weights=False),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=5, init_weights=False, alpha_pattern={"to_q": 1}),
    "loha tucker": lambda: peft.LoHaConfig(r=2, alpha=5, init_weights=False, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=5, init_weights=False, decompose_both=True),
    "lokr whole": lambda: peft.LoKrConfig(r=64, alpha=20, init_weights=False),
    "lokr tucker": lambda: peft.LoKrConfig(r=2, alpha=5, init_weights=False, use_effective_conv2d=True),
    "ia3": lambda: peft.IA3Config(feedforward_modules=["to_out.0", "conv1"], init_ia3_weights=False),
}


def saved_by_peft(config: peft.PeftConfig, folder: Path, name: str = "default", **options: Any) -> nn.Module:
    torch.manual_seed(5)
    config.target_modules = TARGETS if not isinstance(config, peft.AdaLoraConfig) else ["to_q", "to_out.0"]
    model = peft.get_peft_model(tiny_unet(), config, adapter_name=name).eval()
    for key, parameter in model.named_parameters():
        if "magnitude" in key:
            parameter.data *= 1.2
        elif "lora_E" in key:
            parameter.data *= 0.3
        elif parameter.requires_grad and ("lora" not in key or key.endswith("bias")):
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize(("name", "safe"), [*((name, True) for name in PEFT), ("alpha", False)])
def test_folders_as_in_peft(name: str, safe: bool, tmp_path: Path) -> None:
    config = PEFT[name]()
    model = saved_by_peft(config, tmp_path, safe_serialization=safe)
    weights = next(file for file in tmp_path.iterdir() if file.stem == "adapter_model")
    for given in (tmp_path, weights):
        assert_acts_as(Lora.load(given), unet_output(model.base_model.model), 1.0, name != "bias of lora_B")


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", ["alpha", "rslora", "dora", "bias of lora_B"])
def test_weights_as_in_peft(name: str, weight: float, tmp_path: Path) -> None:
    model = saved_by_peft(PEFT[name](), tmp_path)
    for module in model.modules():
        if hasattr(module, "scaling"):
            module.scaling = {key: scale * weight for key, scale in module.scaling.items()}
    assert_acts_as(Lora.load(tmp_path), unet_output(model.base_model.model), weight, name != "bias of lora_B")


def test_adapters_of_other_names_are_in_folders_of_their_own(tmp_path: Path) -> None:
    model = saved_by_peft(PEFT["alpha"](), tmp_path, "style")
    assert_acts_as(Lora.load(tmp_path), unet_output(model.base_model.model), 1.0)
    saved_by_peft(PEFT["alpha"](), tmp_path, "other")
    with pytest.raises(WeightsError, match=r"holds 2 adapters \(other, style\): name the folder of one"):
        Lora.load(tmp_path)
    assert_acts_as(Lora.load(tmp_path / "style"), unet_output(model.base_model.model), 1.0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"peft_type": "VERA"}, WrongKind, "an adapter of peft of the type VERA"),
        ({"peft_type": "OFT"}, WrongKind, "of the type OFT"),
        ({"init_lora_weights": "pissa_niter_4"}, WrongKind, "'pissa_niter_4', which also changes the base"),
        ({"use_qalora": True}, WrongKind, "use_qalora"),
        ({"lora_alpha": "much"}, Damaged, "lora_alpha that cannot be used"),
        ({"lora_alpha": 1e999}, Damaged, "adapter_config.json|cannot be used"),
        ({"alpha_pattern": {"(": 1}}, Damaged, "alpha_pattern"),
        ({"alpha_pattern": [1]}, Damaged, "alpha_pattern"),
        ({"alpha_pattern": {"([a-z._0-9]+)+X": 3}}, Damaged, "repeats too much"),
        ({"rank_pattern": {".*" * 12 + "X": 3}}, Damaged, "repeats too much"),
    ],
)
def test_configs_that_cannot_be_applied_are_named(change, error, words, tmp_path: Path) -> None:
    saved_by_peft(PEFT["alpha"](), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(error, match=words):
        Lora.load(tmp_path)


@pytest.mark.parametrize("spelling", ["lora", "PeftType.LORA"])
def test_the_type_of_an_adapter_in_other_spellings(spelling, tmp_path: Path) -> None:
    model = saved_by_peft(PEFT["alpha"](), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": spelling}))
    assert_acts_as(Lora.load(tmp_path), unet_output(model.base_model.model), 1.0)


def test_weights_of_peft_without_their_config_get_a_note(tmp_path: Path) -> None:
    saved_by_peft(PEFT["alpha"](), tmp_path)
    assert Lora.load(tmp_path).notes == ()
    (tmp_path / "adapter_config.json").unlink()
    assert "scale 1" in Lora.load(tmp_path / "adapter_model.safetensors").notes[0]


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"alpha": torch.tensor(float("nan"))}, Damaged, "nan"),
        ({"alpha": torch.ones(3)}, Damaged, r"conv_in: alpha should be one number, but has the size \(3,\)"),
        ({"lora_down.weight": torch.full((2, 4, 3, 3), float("inf"))}, Damaged, "not finite.*conv_in"),
        ({"lora_down.weight": torch.zeros(0, 4, 3, 3)}, Damaged, "conv_in: A lora layer has nothing in down"),
        ({"lora_down.weight": torch.zeros(3, 4, 3, 3)}, Mismatch, "conv_in: a change with .*does not fit"),
        ({"lora_down.weight": torch.zeros(2, 5, 3, 3)}, Mismatch, "conv_in: a change .*does not fit"),
        ({"diff_b": torch.zeros(5)}, Mismatch, "conv_in: a change of the bias of 5 does not fit"),
        ({"dora_scale": torch.ones(3, 1, 1, 1)}, Mismatch, "conv_in: a change .*does not fit"),
    ],
)
def test_tensors_that_cannot_be_applied_are_named(tensors, error, words, tmp_path: Path) -> None:
    plain = {"lora_down.weight": torch.randn(2, 4, 3, 3), "lora_up.weight": torch.randn(32, 2, 1, 1)}
    state = {f"lora_unet_conv_in.{key}": tensor for key, tensor in (plain | tensors).items()}
    save_file(state, tmp_path / "l.safetensors")
    with pytest.raises(error, match=words) as caught:
        Lora.load(tmp_path / "l.safetensors").attach(OfUnet(tiny_unet()))
    assert "l.safetensors" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_mixed_and_small_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    down, up = torch.randn(2, 4, 3, 3).to(dtype), torch.randn(32, 2, 1, 1)
    state = {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}
    save_file(state, tmp_path / "l.safetensors")
    unet = tiny_unet()
    with Lora.load(tmp_path / "l.safetensors").attach(OfUnet(unet)):
        ours = unet_output(unet)
    unet.conv_in.weight.data += torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down.float())
    torch.testing.assert_close(ours, unet_output(unet), **TOLERANCE)
