from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stillmotion.datasets.buckets import bucket_sizes, fitting_step, grouped, nearest
from stillmotion.datasets.images import find_images, measured, read_image
from stillmotion.datasets.latent_cache import LatentCache
from stillmotion.datasets.report import Report
from stillmotion.errors import DataError

steps = st.sampled_from([8, 16, 32, 64])


@given(steps, st.integers(1, 16), st.integers(1, 4000), st.integers(1, 4000))
def test_buckets_suit_the_network_and_the_image(step, times, height, width):
    resolution = step * times
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    for tall, wide in sizes:
        assert tall % step == 0 and wide % step == 0 and (wide, tall) in sizes
        assert resolution**2 - max(tall, wide) * step < tall * wide <= resolution**2
        assert resolution <= 2 * min(tall, wide) and max(tall, wide) <= 2 * resolution
    tall, wide = nearest(height, width, sizes)
    apart = abs(np.log(tall / wide) - np.log(height / width))
    assert all(apart <= abs(np.log(a / b) - np.log(height / width)) + 1e-8 for a, b in sizes)


@pytest.mark.parametrize(
    "resolution, step", [(512, 64), (768, 64), (256, 64), (120, 8), (96, 32), (20, 0), (8, 8)]
)
def test_steps_divide_the_resolution(resolution, step):
    assert fitting_step(resolution, 8, 3) == step


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.data())
def test_batches_are_of_one_bucket_and_an_epoch_is_whole(groups, size, data):
    order = data.draw(st.permutations(range(len(groups))))
    first = data.draw(st.integers(0, size - 1))
    taken = grouped(order, groups, size, first)
    assert sorted(taken) == sorted(order)
    batches = [taken[start : start + size] for start in range(first, len(taken), size)]
    mixed = sum(len({groups[item] for item in batch}) > 1 for batch in batches)
    possible = sum(count // size for count in Counter(groups).values())
    pure = sum(len(batch) == size and len({groups[item] for item in batch}) == 1 for batch in batches)
    assert pure >= possible - -(-first // size) and mixed <= 4


def image(path, size=(20, 30), colour=(200, 0, 0), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size[1], size[0]), colour).save(path, **options)
    return path


def test_captions_from_files_folders_and_kohyas_names(tmp_path):
    image(tmp_path / "10_red cat" / "a.png")
    image(tmp_path / "my_dog" / "b.jpg")
    image(tmp_path / "my_dog" / "c.webp").with_suffix(".txt").write_text("a dog\n\nthe dog\n", "utf-8")
    image(tmp_path / "my_dog" / ".hidden.png")
    (tmp_path / "my_dog" / "notes.md").write_text("no image")
    found = find_images(tmp_path, Report())
    assert [(item.path.name, item.captions, times) for item, times in found] == [
        ("a.png", ("red cat",), 10),
        ("b.jpg", ("my dog",), 1),
        ("c.webp", ("a dog", "the dog"), 1),
    ]
    assert {item.captions for item, _ in find_images(tmp_path, Report(), ["a sks dog"])} == {("a sks dog",)}
    image(tmp_path / "0_x" / "a.png")
    with pytest.raises(DataError, match="0 times per epoch: name it 1_x"):
        find_images(tmp_path, Report())


def test_jsonl_of_images(tmp_path):
    image(tmp_path / "a.png")
    rows = [{"file": "a.png", "caption": ["x", "y"]}, {"file": "b.png", "caption": "z"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    report = Report()
    ((item, times),) = find_images(tmp_path / "t.jsonl", report)
    assert (item.captions, times) == (("x", "y"), 1) and len(report.skipped) == 1
    for name, what in (("a.png", "is no folder of images"), ("none", "does not exist")):
        with pytest.raises(DataError, match=f"{name} {what}; give a folder with captions"):
            find_images(tmp_path / name, Report())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty names no file .*\.jpg, \.png"):
        find_images(tmp_path / "empty", Report())


def test_unreadable_images_are_reported_and_sizes_known(tmp_path):
    image(tmp_path / "wide.png", (16, 64))
    image(tmp_path / "small.png", (8, 8))
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "none.png").write_bytes(b"")
    report = Report()
    sizes = bucket_sizes(16, 8)
    small, wide = measured(find_images(tmp_path, report), sizes, False, report)
    assert (wide.size, wide.bucket, wide.enlarged) == ((16, 64), (8, 32), False)
    assert (small.bucket, small.enlarged) == ((16, 16), True)
    assert {path.rpartition("/")[2] for path in report.skipped} == {"page.jpg", "none.png"}


def ready(tmp_path, item):
    cache = LatentCache(tmp_path / "cache", lambda stack: stack, "vae", 16, read=read_image)
    report = Report()
    assert cache.build([item], report) in (0, 1) and not report.skipped
    return cache.ready(item)


def test_images_fill_their_bucket_over_white(tmp_path):
    clear = image(tmp_path / "a.png", (16, 64), (0, 0, 0, 0), "RGBA")
    (item,) = [p.item for p in measured([*find_images(tmp_path, Report())], [(8, 32)], False, Report())]
    latents = ready(tmp_path, item).latents([0])
    assert latents.shape == (1, 3, 8, 32) and torch.equal(latents, torch.ones_like(latents))
    first = [Image.new("RGB", (32, 8), colour) for colour in ("white", "black", "red")]
    first[0].save(clear.with_suffix(".gif"), save_all=True, append_images=first[1:])
    clear.unlink()
    (item,) = [p.item for p in measured([*find_images(tmp_path, Report())], [(8, 32)], False, Report())]
    clip = ready(tmp_path, item)
    assert clip.length == 1 and torch.equal(clip.latents([0]), torch.ones(1, 3, 8, 32))


def test_flips_are_mirror_images_with_latents_of_their_own(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    found = find_images(tmp_path, Report())
    (item,) = [p.item for p in measured(found, [(16, 16)], True, Report())]
    plain, flipped = ready(tmp_path, item).latents([0, 1])
    assert torch.equal(plain.flip(-1), flipped) and not torch.equal(plain, flipped)
    (single,) = [p.item for p in measured(found, [(16, 16)], False, Report())]
    assert ready(tmp_path, single).length == 1


def test_photos_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "photo.jpg", (16, 64), exif=exif)
    ((found, _),) = find_images(tmp_path, Report())
    (camera_move,) = measured([(found, 1)], [(32, 8), (8, 32)], False, Report())
    assert camera_move.size == (64, 16) and camera_move.bucket == (32, 8)
