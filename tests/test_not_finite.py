"""Files whose training ran away: named with the layer, whatever they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_lora, tiny_motion

from stillmotion.checkpoints.embeddings import read_embedding
from stillmotion.checkpoints.lora_model import Lora
from stillmotion.checkpoints.motion_model import MotionModel
from stillmotion.errors import Damaged


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_motion_lora_and_embedding(tmp_path: Path, value: float) -> None:
    file = tmp_path / "bad.safetensors"
    lora = tiny_lora()
    save_file(lora, file)
    Lora.load(file)
    name = sorted(lora)[-1]
    lora[name][0, 0] = value
    save_file(lora, file)
    with pytest.raises(Damaged, match=rf"bad.safetensors .*finite.* {name}"):
        Lora.load(file)
    save_file({"emb_params": torch.full((2, 768), value)}, file)
    with pytest.raises(Damaged, match=r"bad.safetensors .*finite.* emb_params"):
        read_embedding(file)
    model = MotionModel(tiny_motion().family)
    model.save(file)
    MotionModel.load(file)
    state = load_file(file)
    save_file({key: tensor + value if "proj_out" in key else tensor for key, tensor in state.items()}, file)
    with pytest.raises(Damaged, match=r"bad.safetensors .*finite.*proj_out.* more tensors"):
        MotionModel.load(file)
