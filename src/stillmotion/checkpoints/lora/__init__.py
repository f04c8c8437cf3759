"""LoRAs of every layout and algorithm: what a file is, and its names there and back."""
