"""Diffusion maths that sampling and training share: schedulers, noise, objectives, text."""
