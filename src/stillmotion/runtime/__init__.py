"""Same images, less time: precision chosen by what the machine does well. Never a second sampler."""
