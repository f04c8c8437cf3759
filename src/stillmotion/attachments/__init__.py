"""Everything that is attached to a network by hooks and detached again: motion, LoRA, precision."""
