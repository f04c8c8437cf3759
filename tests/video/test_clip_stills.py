"""Photos and images of other programs: turned, with previews inside, in unusual modes, far too large."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from stillmotion.errors import DataError
from stillmotion.video import open_frames, read_frames
from stillmotion.video.image_opening import MOST_IMAGES

IMAGE = np.full((32, 64, 3), 40, np.uint8)
IMAGE[:16, :32], IMAGE[16:, 32:] = (220, 30, 30), (30, 30, 220)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif", "folder", "a.mpo"])
def test_images_stand_upright_in_every_format(tmp_path, name, orientation):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    image, mark = Image.fromarray(IMAGE), exif(orientation)
    options = {"quality": 100} if path.suffix in {".jpg", ".webp", ".avif", ".mpo"} else {}
    if name == "a.mpo":
        options |= {"save_all": True, "append_images": [image.resize((16, 8))]}
    image.save(path / "1.png" if name == "folder" else path, exif=mark, **options)
    held = image.copy()
    held.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(held))
    frames, _ = read_frames(path)
    assert frames.shape == (1, *expected.shape)
    assert np.abs(frames[0].astype(int) - expected).mean() < 6


def test_animations_are_turned_whole_and_a_broken_exif_turns_nothing(tmp_path):
    images = [Image.fromarray(np.roll(IMAGE, 8 * n, 1)) for n in range(3)]
    for name in ("a.webp", "a.png"):
        options = {"save_all": True, "append_images": images[1:], "duration": 100}
        images[0].save(tmp_path / name, exif=exif(6), lossless=True, **options)
        frames, _ = read_frames(tmp_path / name)
        assert np.array_equal(frames, [np.rot90(np.asarray(image), -1) for image in images])
        images[0].save(tmp_path / name, exif=b"Exif\0\0garbage", lossless=True, **options)
        assert read_frames(tmp_path / name)[0].shape == (3, 32, 64, 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1, np.nan]], np.float32), [0, 128, 255, 0]),
        (np.array([[0, 128, 255, -5]], np.float32), [0, 128, 255, 0]),
        (np.array([[0, 32768, 65535, 257]], np.float32), [0, 128, 255, 1]),
        (np.array([[0, 32768, 65535, 257]], np.int32), [0, 128, 255, 1]),
        (np.array([[0, 1, 2, 255]], np.int32), [0, 1, 2, 255]),
        (np.array([[0, 0x8000, 0xFFFF, 0x1FF]], np.uint16), [0, 128, 255, 1]),
        (np.array([[0, 0.5, np.nan, np.inf, -np.inf, 1]], np.float32), [0, 128, 0, 255, 0, 255]),
    ],
)
def test_deep_and_float_tiffs_keep_their_light(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_frames(tmp_path / "a.tif")[0][0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "CMYK", "RGBA", "YCbCr"])
def test_every_mode_of_image_is_read(tmp_path, mode):
    image = Image.fromarray(IMAGE).convert("L" if mode in {"1", "L", "LA"} else "RGB")
    expected = np.asarray(image.convert("RGB")).astype(int)
    name = "a.jpg" if mode in {"CMYK", "YCbCr"} else "a.tif" if mode != "PA" else "a.png"
    image = image.quantize(8).convert(mode) if mode in {"P", "PA"} else image.convert(mode)
    (image.convert("RGBA") if mode == "PA" else image).save(tmp_path / name)
    found = read_frames(tmp_path / name)[0][0].astype(int)
    assert mode == "1" or np.abs(found - expected).mean() < 6


def test_pages_of_a_tiff_are_frames_and_its_previews_are_not(tmp_path):
    pages = [Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1])]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert read_frames(tmp_path / "stack.tif")[0].shape == (2, 32, 64, 3)
    pages[0].save(tmp_path / "photo.tif", save_all=True, append_images=[pages[0].resize((16, 8))])
    assert np.array_equal(read_frames(tmp_path / "photo.tif")[0], [IMAGE])


def gif_header(width, height):
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6)


def test_sizes_and_counts_are_bounded_before_memory_is_taken(tmp_path):
    frame = b"\x21\xf9\x04\0\x0a\0\0\0\x2c" + bytes(4) + b"\1\0\1\0\0\2\2\x44\1\0"
    (tmp_path / "many.gif").write_bytes(gif_header(1, 1) + frame * (MOST_IMAGES + 1) + b";")
    (tmp_path / "large.gif").write_bytes(gif_header(65535, 65535) + frame + b";")
    for name, what in (("many.gif", "more than 20000 images of 1x1"), ("large.gif", "exceeds limit")):
        with pytest.raises(DataError, match=rf"{name} .*{what}"):
            open_frames(tmp_path / name)
    (tmp_path / "few.gif").write_bytes(gif_header(1, 1) + frame * 50 + b";")
    assert len(open_frames(tmp_path / "few.gif")) == 50


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(64), "is HEIC: `pip install pillow-heif`"),
        ("a.jpg", b"\0\0\0\x18ftypmif1" + bytes(64), "is HEIC: `pip install pillow-heif`"),
        ("a.jxl", b"\xff\x0a" + bytes(64), "is JPEG XL"),
    ],
)
def test_images_that_need_other_software_are_named(tmp_path, name, data, what, monkeypatch):
    monkeypatch.setattr("stillmotion.video.image_opening.find_spec", lambda name: None)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} {what}"):
        open_frames(tmp_path / name)
