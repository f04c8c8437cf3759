"""Does motion know the order of frames? Its loss on real clips, beside that of the same frames shuffled.

    python order.py                          the bundled motion
    python order.py --motion FOLDER          another one, such as that of a run

No text, fixed noise of the kind that the motion knows: prints, for three timesteps, the loss of the base
alone, with motion, and with motion on shuffled frames. Motion that only averages the frames cannot tell the
last two apart. Nor does it need to where noise goes on from frame to frame (noise_alpha): that is shuffled
too, and says who is a neighbour.
"""

from __future__ import annotations

import argparse

import torch
from places import CLIPS
from torch import Tensor

import stillmotion as sm
from stillmotion.datasets.latent_cache import pixels
from stillmotion.diffusion.noise import progressive_noise
from stillmotion.diffusion.objectives import add_noise, target
from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.diffusion.vae import scaled_encode
from stillmotion.video import open_frames

FRAMES, STRIDE, TIMES = 16, 3, (800, 400, 100)


def clips(animator: sm.Animator, count: int) -> list[Tensor]:
    """Latents (16, 8, 16, 16) of the first clips, whether the base knows what they show or not."""
    found = []
    for path in sorted((CLIPS / "train").glob("*.webp"))[:count]:
        source = open_frames(path)
        frames = source.frames([STRIDE * i % len(source) for i in range(FRAMES)])
        found.append(scaled_encode(animator.pipeline.vae, pixels(frames, 128)))
    return found


@torch.no_grad()
def losses(animator: sm.Animator, latents: list[Tensor], time: int) -> tuple[float, float, float]:
    """Mean loss of the base, with motion, and with motion on shuffled frames."""
    family, unet = animator.family, animator.pipeline.unet
    schedule = family.schedule.over_base(NoiseSchedule.from_config(animator.pipeline.scheduler.config))
    alpha_bar = torch.tensor(schedule.alphas_cumprod()[time], dtype=torch.float32)
    text = animator.pipeline.encode_prompt("", "cpu", FRAMES, False)[0]
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(2))
    rows = []
    for z in latents:
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        noise = progressive_noise(noise, family.schedule.noise_alpha)
        x, wanted = add_noise(z, noise, alpha_bar), target(z, noise, alpha_bar, "v_prediction")
        row = [(unet(x, time, text).sample - wanted).square().mean()]
        with sm.attach(unet, animator.motion, FRAMES):
            row += [(unet(x[o], time, text).sample - wanted[o]).square().mean() for o in (slice(None), order)]
        rows.append(torch.stack(row))
    return tuple(torch.stack(rows).mean(0).tolist())


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--motion", help="default: the bundled one")
    parser.add_argument("--clips", type=int, default=12)
    options = parser.parse_args()
    animator = sm.Animator.load(motion=options.motion, dtype="float32")
    latents = clips(animator, options.clips)
    for time in TIMES:
        base, motion, shuffled = losses(animator, latents, time)
        rise = shuffled / motion - 1
        print(f"t {time}: base {base:.4f}, motion {motion:.4f}, shuffled {shuffled:.4f} ({rise:+.1%})")


if __name__ == "__main__":
    main()
