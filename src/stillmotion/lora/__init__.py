"""Adapters (LoRA and its kin): changes of single layers, as hooks that come off again."""
