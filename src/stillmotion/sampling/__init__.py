"""From a request to latents and frames: loading models, the Animator, latents on disk."""
