from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.datasets.latent_cache import LatentCache, pixels
from stillmotion.datasets.report import Report
from stillmotion.datasets.sources import Item


def clip(path, length=5, size=16, colour=0):
    images = [Image.new("RGB", (size, size), (colour, number * 20, 0)) for number in range(length)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, lossless=True)
    return Item(path, ("a",))


class Encoder:
    """Half size, one channel per colour; counts what it was asked to do."""

    def __init__(self):
        self.frames = 0

    def __call__(self, stack):
        self.frames += len(stack)
        return torch.nn.functional.avg_pool2d(stack, 2)


def test_latents_of_all_frames_once(tmp_path):
    items = [clip(tmp_path / "a.webp"), clip(tmp_path / "b.webp", length=20, colour=90)]
    encode, report = Encoder(), Report()
    cache = LatentCache(tmp_path / "c", encode, "vae", 16, batch=8)
    assert cache.build(items, report) == 2 and encode.frames == 25
    ready = cache.ready(items[1])
    assert (ready.length, ready.fps) == (20, 20)
    latents = ready.latents([3, 0, 3])
    assert latents.shape == (3, 3, 8, 8) and latents.dtype == torch.float16
    wanted = torch.tensor([60, 0, 60]) / 127.5 - 1
    assert torch.allclose(latents[:, 1, 0, 0].float(), wanted, atol=2e-3)
    assert cache.build(items, report) == 0 and encode.frames == 25
    assert not report.skipped


def test_another_vae_or_size_is_another_cache(tmp_path):
    item = clip(tmp_path / "a.webp")
    LatentCache(tmp_path / "c", Encoder(), "vae", 16).build([item], Report())
    assert LatentCache(tmp_path / "c", Encoder(), "vae", 16).ready(item)
    assert LatentCache(tmp_path / "c", Encoder(), "other", 16).ready(item) is None
    assert LatentCache(tmp_path / "c", Encoder(), "vae", 8).ready(item) is None


def test_a_moved_clip_is_known_and_a_changed_one_is_not(tmp_path):
    item = clip(tmp_path / "a.webp")
    cache = LatentCache(tmp_path / "c", Encoder(), "vae", 16)
    cache.build([item], Report())
    moved = Item(item.path.rename(tmp_path / "b.webp"), ("a",))
    assert cache.ready(moved)
    assert cache.ready(clip(tmp_path / "b.webp", colour=200)) is None


def test_interrupted_building_goes_on(tmp_path):
    items = [clip(tmp_path / f"{number}.webp", colour=number) for number in range(3)]
    encode = Encoder()

    def interrupted(stack):
        if encode.frames >= 5:
            raise KeyboardInterrupt
        return encode(stack)

    with pytest.raises(KeyboardInterrupt):
        LatentCache(tmp_path / "c", interrupted, "vae", 16).build(items, Report())
    assert [path.suffix for path in (tmp_path / "c").rglob("*") if path.is_file()] == [".safetensors"]
    assert LatentCache(tmp_path / "c", encode, "vae", 16).build(items, Report()) == 2
    assert encode.frames == 15


def test_unreadable_clips_are_reported_with_their_reason(tmp_path):
    (tmp_path / "page.gif").write_text("<html>404</html>")
    good = clip(tmp_path / "a.webp")
    cut = tmp_path / "cut.webp"
    cut.write_bytes(good.path.read_bytes()[:60])
    (tmp_path / "empty.mp4").write_bytes(b"")
    bad = [Item(tmp_path / name, ("x",)) for name in ("page.gif", "cut.webp", "empty.mp4")]
    report = Report()
    cache = LatentCache(tmp_path / "c", Encoder(), "vae", 16)
    assert cache.build([*bad, good], report) == 1
    assert list(report.skipped) == [str(item.path) for item in bad]
    assert all(len(why) > 8 and str(tmp_path) not in why for why in report.skipped.values())


def test_a_broken_cache_file_is_made_again(tmp_path):
    item = clip(tmp_path / "a.webp")
    cache = LatentCache(tmp_path / "c", Encoder(), "vae", 16)
    cache.build([item], Report())
    file = cache.ready(item).file
    file.write_bytes(file.read_bytes()[:100])
    assert cache.ready(item) is None
    assert cache.build([item], Report()) == 1 and cache.ready(item)


def test_pixels_are_resized_and_cut_to_the_centre():
    frames = np.zeros((2, 20, 40, 3), np.uint8)
    frames[:, :, 10:30] = 255
    stack = pixels(frames, 10)
    assert stack.shape == (2, 3, 10, 10)
    assert stack[..., 2:8].min() > 0.99
    assert pixels(frames[:, :, 10:30], 20).unique().tolist() == [1.0]
    assert pixels(np.full((1, 7, 5, 3), 127, np.uint8), 8).shape == (1, 3, 8, 8)
