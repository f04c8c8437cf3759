"""A style, and a move of the camera: LoRAs by name or file, with weights by part and frame.

python examples/loras_and_camera.py
"""

import stillmotion as sm

animator = sm.Animator.load(
    loras={"high-contrast": {"unet": 1.0, "text": 0.5}},  # or a file of yours
    motion_loras={"zoom-in": 0.7},
)
clip = animator.animate("castle, high contrast style", seed=3)
clip.save("castle.gif", scale=2, overwrite=True)

print(sm.identify(sm.installed_models()["emoji"] / "loras" / "zoom-in.safetensors").describe())
