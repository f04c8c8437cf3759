"""Instead of steps 4 to 6 from nothing: go on from the bundled weights, on a machine that has only the
repository.

The autoencoder, the tokenizer and the token table are taken as they are; base.py starts at the bundled UNet
and text encoder with a fresh optimizer; the motion run takes `--motion emoji`.
"""

from __future__ import annotations

import shutil

import torch
from base import Model
from diffusers import AutoencoderKL, UNet2DConditionModel
from optim import Average, Muon2
from places import BUNDLED, RUNS
from safetensors.torch import save_file
from transformers import CLIPTextModel


def main() -> None:
    if (RUNS / "base" / "state.pt").exists():
        raise SystemExit(
            f"{RUNS / 'base'} has a state of its own: remove the folder to start from the bundled weights."
        )
    AutoencoderKL.from_pretrained(BUNDLED / "vae", torch_dtype=torch.float32).save_pretrained(RUNS / "vae")
    shutil.copytree(BUNDLED / "tokenizer", RUNS / "text", dirs_exist_ok=True)
    text = CLIPTextModel.from_pretrained(BUNDLED / "text_encoder", torch_dtype=torch.float32)
    save_file({"table": text.get_input_embeddings().weight.data.clone()}, RUNS / "text" / "table.safetensors")
    model = Model()
    unet = UNet2DConditionModel.from_pretrained(BUNDLED / "unet", torch_dtype=torch.float32)
    model.unet.load_state_dict(unet.state_dict())
    model.text.load_state_dict(text.state_dict())
    optimizer, average = Muon2(model.named_parameters(), 1e-3), Average(model, 0.999)
    (RUNS / "base").mkdir(parents=True, exist_ok=True)
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.shadow}
    torch.save({**parts, "averaged": 0, "step": 0}, RUNS / "base" / "state.pt")
    print(f"base.py goes on from the bundled weights; its state is in {RUNS / 'base'}")


if __name__ == "__main__":
    main()
