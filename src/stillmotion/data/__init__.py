"""Clips and captions for training: where they are, which frames of them, their latents on disk, what went wrong."""
