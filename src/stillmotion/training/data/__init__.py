"""Images and videos as training samples, with latents on disk."""
