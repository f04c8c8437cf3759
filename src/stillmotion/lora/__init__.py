"""LoRA and its kin: the change of one layer, and the module that computes it."""
