"""Measures on clips: numbers that say what is seen."""
