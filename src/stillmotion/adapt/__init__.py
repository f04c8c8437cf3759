"""Adapters: small changes of single layers, as hooks that come off again. LoRA and its kin. Knows no files."""
