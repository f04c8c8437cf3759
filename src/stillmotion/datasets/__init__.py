"""Clips and captions for training: where they are, which of their frames, latents on disk, what was wrong."""
