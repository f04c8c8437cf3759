"""The training loop and its parts; `target.py` says what a target must have."""
