"""A prompt becomes a clip, and the clip remembers how it was made.

python examples/text_to_clip.py
"""

import stillmotion as sm

# the bundled model; with files of yours: load("toonyou.safetensors", motion="v3_sd15_mm.ckpt")
animator = sm.Animator.load()
clip = animator.animate("a rocket, 3d render style", seed=7)
clip.save("rocket.gif", scale=2, overwrite=True)
clip.sheet().save("rocket.png")

request = sm.Clip.load("rocket.gif").request  # every file carries its request
again = animator.animate(request, seed=8)  # one thing changed
sm.grid([clip, again]).save("rockets.webp", overwrite=True)
print(f"{len(clip)} frames at {clip.fps:g} a second in rocket.gif, two seeds side by side in rockets.webp")
