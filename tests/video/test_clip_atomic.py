"""Files appear whole or not at all, and never over something that should stay."""

from __future__ import annotations

import os

import numpy as np
import pytest
from test_clip_formats import NAMES

from stillmotion.errors import OutputError
from stillmotion.video import Clip, animated_images, check_output, ffmpeg


class Interrupted:
    """Stands for `enlarged`, which every writer takes its frames from: stops after two of them."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, frames, scale):
        yield frames[0]
        yield frames[1]
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), MemoryError()])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_write_leaves_nothing(clip, tmp_path, monkeypatch, name, error):
    for room in (animated_images, ffmpeg):
        monkeypatch.setattr(room, "enlarged", Interrupted(error))
    with pytest.raises(type(error)):
        clip.save(tmp_path / "new" / "deep" / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_overwrite_leaves_the_old(clip, tmp_path, monkeypatch, name):
    clip.save(tmp_path / name)
    before = Clip.load(tmp_path / name).frames
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for room in (animated_images, ffmpeg):
            patch.setattr(room, "enlarged", Interrupted(KeyboardInterrupt()))
        clip.save(tmp_path / name, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert np.array_equal(Clip.load(tmp_path / name).frames, before)


def test_an_interrupt_inside_pillows_encoder_leaves_nothing(clip, tmp_path, monkeypatch):
    def half(image, path, *args, **options):
        path.write_bytes(b"GIF89a")
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", half)
    with pytest.raises(KeyboardInterrupt):
        clip.save(tmp_path / "clip.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_overwritten_unless_asked(clip, tmp_path, name):
    path = clip.save(tmp_path / name)
    with pytest.raises(
        OutputError, match=r"exists.* another name, or (overwrite|replace) it with `overwrite=True`"
    ):
        clip.save(path)
    with pytest.raises(OutputError, match="exists"):
        check_output(path)
    shorter = Clip(clip.frames[:5], clip.fps)
    shorter.save(path, overwrite=True)
    assert len(Clip.load(path)) == 5
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_folder_with_other_things_is_never_replaced(clip, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other things than a clip"):
        clip.save(tmp_path / "thesis", overwrite=True)
    with pytest.raises(OutputError, match="exists and is not empty"):
        clip.save(tmp_path / "thesis")
    (tmp_path / "empty").mkdir()
    assert len(Clip.load(clip.save(tmp_path / "empty"))) == len(clip)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("clip.avi", "unknown extension .avi: known are .gif, .webp, .apng, .mp4, .webm, .png and a folder"),
        ("clip.wepb", r"did you mean \.webp\?"),
        ("clip.safetensors", "unknown extension .safetensors"),
        ("folder.gif", "is a folder: choose another name"),
        ("file.txt/clip.gif", "is a file, not a folder"),
    ],
)
def test_names_that_cannot_be_written_are_refused_in_a_sentence(clip, tmp_path, name, sentence):
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file.txt").write_text("x")
    for attempt in (clip.save, check_output):
        with pytest.raises(OutputError, match=sentence):
            attempt(tmp_path / name)


def test_options_that_cannot_be_are_refused_before_anything_is_written(clip, tmp_path):
    for options, sentence in (
        ({"scale": 0}, "scale is 0"),
        ({"scale": 65}, "scale is 65, but .* 3, ... 64"),
        ({"scale": 1.5}, "scale is 1.5, but a clip is enlarged by a whole number"),
        ({"quality": 101}, "quality is 101"),
        ({"dither": "bayer"}, "dither is 'bayer', but must be one of none, floyd-steinberg, ordered"),
    ):
        with pytest.raises(OutputError, match=sentence):
            clip.save(tmp_path / "clip.gif", **options)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_in_a_sentence(clip, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(OutputError, match=r"clip.gif could not be written: .*No space left on device\."):
        clip.save(tmp_path / "clip.gif")


def test_a_missing_codec_is_an_error_with_a_way_out(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(ffmpeg.av, "codecs_available", {"mpeg4"})
    with pytest.raises(OutputError, match=r"no libx264: save as .webp or .gif"):
        clip.save(tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_files_get_the_permissions_that_the_user_wants(clip, tmp_path):
    before = os.umask(0o022)
    try:
        modes = [clip.save(tmp_path / name).stat().st_mode & 0o777 for name in ("a.gif", "a.mp4", "folder")]
    finally:
        os.umask(before)
    assert modes == [0o644, 0o644, 0o755]
