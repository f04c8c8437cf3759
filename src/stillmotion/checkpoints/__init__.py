"""Weights: from bytes in files to canonical names, and what they are."""
