"""Every format: pixels, times and the tag come back, also for odd sizes, equal neighbours and stills."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from clip_scenes import moving_disc, psnr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from stillmotion.errors import OutputError
from stillmotion.request import Request
from stillmotion.video import Clip, open_frames

NAMES = ("clip.gif", "clip.webp", "clip.apng", "clip.mp4", "clip.webm", "clip")
LOSSLESS = ("clip.webp", "clip.apng", "clip")

small_clips = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(
        np.uint8, (*shape, 3), elements=st.sampled_from([0, 1, 127, 255]) | st.integers(0, 255)
    )
)
rates = st.floats(1, 50)


@pytest.fixture(scope="module")
def folder():
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("name", LOSSLESS)
@given(frames=small_clips, fps=rates, repeats=st.lists(st.integers(1, 3), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lossless_formats_give_back_every_bit(folder, name, frames, fps, repeats):
    frames = np.repeat(frames, repeats[: len(frames)], axis=0)  # equal neighbours, which encoders merge
    path = Clip(frames, fps).save(folder / name, quality=100, overwrite=True)
    back = Clip.load(path)
    assert np.array_equal(back.frames, frames)
    assert back.fps == fps and back.request is None


@given(frames=small_clips, fps=rates)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gif_gives_back_few_colours_and_all_frames(folder, frames, fps):
    back = Clip.load(Clip(frames, fps).save(folder / "clip.gif", overwrite=True))
    assert back.frames.shape == frames.shape and back.fps == fps
    if len(np.unique(frames.reshape(-1, 3), axis=0)) <= 256:
        assert np.array_equal(back.frames, frames)


@pytest.mark.parametrize("name", NAMES)
def test_the_tag_comes_back(clip, tmp_path, name):
    back = Clip.load(clip.save(tmp_path / name))
    assert back.request == clip.request and back.fps == clip.fps and len(back) == len(clip)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("clip.gif", {}, 33),
        ("clip.gif", {"dither": True}, 31),
        ("clip.gif", {"dither": "ordered"}, 31),
        ("clip.webp", {}, 29),
        ("clip.mp4", {}, 29),
        ("clip.webm", {}, 29),
        ("clip.mp4", {"quality": 60}, 26),
        ("clip.webm", {"quality": 60}, 26),
    ],
)
def test_lossy_formats_stay_close(clip, tmp_path, name, options, least):
    assert least < psnr(Clip.load(clip.save(tmp_path / name, **options)).frames, clip.frames) < 60


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.webp"])
def test_less_quality_is_a_smaller_file(clip, tmp_path, name):
    sizes = [clip.save(tmp_path / f"{q}{name}", quality=q).stat().st_size for q in (30, 60, 90, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 2


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("fps", [7.3, 8, 23.976, 30])
def test_the_file_itself_lasts_as_long_as_the_clip(clip, tmp_path, name, fps):
    """MotionShapes without our tag: as any player would."""
    path = Clip(clip.frames, fps).save(tmp_path / name)
    seconds = sum(open_frames(path).info.durations_ms) / 1000
    assert seconds == pytest.approx(len(clip) / fps, abs=0.010)


@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_and_single_frames_come_back_whole(tmp_path, name):
    frames = moving_disc(3, 33, 47)
    back = Clip.load(Clip(frames, 5.0).save(tmp_path / name))
    assert psnr(back.frames, frames) > 27
    still = Clip.load(Clip(frames[:1], 5.0).save(tmp_path / f"1{name}"))
    assert still.frames.shape == frames[:1].shape and still.fps == 5.0


@pytest.mark.parametrize("name", NAMES)
def test_enlarged_pixels_are_crisp_blocks(tmp_path, name):
    frames = moving_disc(3, 24, 31)
    back = Clip.load(Clip(frames, 8.0).save(tmp_path / name, scale=3, quality=100))
    blocks = np.repeat(np.repeat(frames, 3, 1), 3, 2)
    assert psnr(back.frames, blocks) > (29 if name.endswith(("gif", "mp4", "webm")) else 1000)
    if not name.endswith(("mp4", "webm")):
        assert np.array_equal(back.frames, np.repeat(np.repeat(back.frames[:, ::3, ::3], 3, 1), 3, 2))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_doubled_pixels_keep_their_colours_in_video(clip, tmp_path, name):
    """Video stores colour at half size: a block of 2x2 has one colour of its own, a single pixel has not."""
    back = Clip.load(clip.save(tmp_path / name, scale=2)).frames[:, ::2, ::2]
    assert psnr(back, clip.frames) > psnr(Clip.load(clip.save(tmp_path / f"1{name}")).frames, clip.frames) + 5


def test_mp4_is_what_browsers_play(clip, tmp_path):
    path = clip.save(tmp_path / "clip.mp4")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first, so playing starts while loading"
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)
        assert json.loads(container.metadata["comment"])["request"]["prompt"] == clip.request.prompt


def test_colours_survive_video(tmp_path):
    patches = np.array([[220, 30, 30], [30, 200, 40], [40, 50, 210], [240, 220, 60]], np.uint8)
    frames = np.repeat(np.repeat(patches.reshape(1, 2, 2, 3), 32, 1), 32, 2).repeat(4, 0)
    for name in ("clip.mp4", "clip.webm"):
        back = Clip.load(Clip(frames, 8.0).save(tmp_path / name)).frames
        for y, x in ((16, 16), (16, 48), (48, 16), (48, 48)):
            assert np.abs(back[:, y, x].astype(int) - frames[:, y, x]).max() <= 4


def test_gif_has_one_palette_and_loops_for_ever(clip, tmp_path):
    data = clip.save(tmp_path / "clip.gif").read_bytes()
    assert data[:6] == b"GIF89a" and data[10] & 0x80
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in data
    position, local = 13 + 3 * (2 << (data[10] & 7)), []
    while data[position] != 0x3B:
        if data[position] == 0x21:
            position += 2
        else:
            local.append(data[position + 9] & 0x80)
            position += 11
        while data[position]:
            position += data[position] + 1
        position += 1
    assert len(local) == len(clip) and not any(local)


@pytest.mark.parametrize("name", ["clip.webp", "clip.apng"])
def test_other_animations_loop_for_ever_too(clip, tmp_path, name):
    with Image.open(clip.save(tmp_path / name)) as image:
        assert image.info["loop"] == 0 and image.n_frames == len(clip)


def test_a_folder_has_stills_that_know_where_they_are_from(clip, tmp_path):
    path = clip.save(f"{tmp_path}/frames.v2/")
    assert sorted(file.name for file in path.iterdir()) == [*[f"{n:04d}.png" for n in range(12)], "clip.json"]
    assert json.loads((path / "clip.json").read_text())["request"]["prompt"] == clip.request.prompt
    still = Clip.load(path / "0003.png")
    assert len(still) == 1 and still.request == clip.request
    assert np.array_equal(still.frames[0], clip.frames[3])


def test_a_single_frame_may_be_a_png(clip, tmp_path):
    still = Clip(clip.frames[:1], clip.fps, clip.request)
    assert Clip.load(still.save(tmp_path / "still.png")).request == clip.request
    with pytest.raises(OutputError, match=r"still2.png is a still, but the clip has 12 frames: use .apng"):
        clip.save(tmp_path / "still2.png")


def test_gif_refuses_rates_that_browsers_would_slow_down(clip, tmp_path):
    with pytest.raises(OutputError, match="at most 50 frames per second, not 60"):
        Clip(clip.frames, 60.0).save(tmp_path / "clip.gif")
    assert not list(tmp_path.iterdir())


def test_a_request_that_cannot_be_used_does_not_hide_the_pixels(clip, tmp_path):
    path = clip.save(tmp_path / "clip")
    facts = json.loads((path / "clip.json").read_text())
    facts["request"]["frames"] = 0
    (path / "clip.json").write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="cannot be used and is left out: frames is 0"):
        back = Clip.load(path)
    assert back.request is None and np.array_equal(back.frames, clip.frames)


@pytest.mark.parametrize(
    "comment", ["made with love", '{"workflow": 1}', '{"stillmotion": 1}', "[]", "3", ""]
)
def test_other_peoples_comments_are_no_tags(clip, tmp_path, comment):
    path = tmp_path / "theirs.gif"
    images = clip.to_pil()
    images[0].save(path, save_all=True, append_images=images[1:], duration=120, comment=comment)
    assert Clip.load(path).request is None and len(Clip.load(path)) == len(clip)


def test_a_file_whose_times_were_edited_keeps_its_request_but_not_its_rate(clip, tmp_path):
    with Image.open(clip.save(tmp_path / "clip.gif")) as image:
        image.save(tmp_path / "fast.gif", save_all=True, duration=50, comment=image.info["comment"])
    back = Clip.load(tmp_path / "fast.gif")
    assert back.fps == pytest.approx(20) and back.request == clip.request


def test_a_clip_says_what_it_is_made_of():
    with pytest.raises(ValueError, match=r"not float64 \(2, 8, 8, 3\)"):
        Clip(np.zeros((2, 8, 8, 3)), 8.0)
    with pytest.raises(ValueError, match=r"not uint8 \(0, 8, 8, 3\)"):
        Clip(np.zeros((0, 8, 8, 3), np.uint8), 8.0)
    with pytest.raises(ValueError, match="fps is 0"):
        Clip(np.zeros((1, 8, 8, 3), np.uint8), 0)
    clip = Clip.from_pil([Image.new("RGBA", (6, 4), "red")] * 3, 2.0, Request(prompt="red"))
    assert (clip.width, clip.height, len(clip), clip.duration) == (6, 4, 3, 1.5)
    assert clip.to_pil()[0].getpixel((0, 0)) == (255, 0, 0)


def test_importing_clips_brings_neither_torch_nor_ffmpeg():
    heavy = "import sys, stillmotion.video; print(set(sys.modules) & {'torch', 'av'})"
    result = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
