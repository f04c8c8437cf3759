"""Motion learnt from clips of your own: any torch Dataset, the engine of `stillmotion train`.

python examples/train_motion.py
"""

import torch

import stillmotion as sm


class Squares(torch.utils.data.Dataset):
    """Clips of a square that slides to the right: (frames, captions)."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        frames = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
        for number in range(8):
            left = (3 * index + 6 * number) % 48
            frames[number, :, 24:40, left : left + 16] = 255
        return frames, "white square"


config = sm.TrainerConfig(output="runs/squares", max_train_steps=20, learning_rate=1e-3, validation_steps=0)
trainer = sm.Trainer(
    "emoji", lambda unet: sm.MotionModel.for_unet(unet, positions=8, mid=False), Squares(), config
)
trainer.train()  # Ctrl-C stops it cleanly, the same command goes on

clip = sm.Animator.load(motion="runs/squares/motion").animate("white square", frames=8, seed=1)
clip.save("squares.webp", overwrite=True)
