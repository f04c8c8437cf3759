"""Measures on clips: numbers that say what is seen. Knows pixels only, no models."""
