"""Whole text-to-image models in one file, by the names of the original (LDM) code."""
