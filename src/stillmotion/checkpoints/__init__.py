"""Model files in and out: formats, keys, what a file is, models built from them, converting, merging."""
