"""Files that others made: alpha, disposal, holds, seeking, and all that is broken or not a clip at all."""

from __future__ import annotations

import pickle
import struct
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from clip_scenes import moving_disc, psnr
from PIL import Image

from stillmotion.errors import DataError
from stillmotion.video import Clip, open_frames, read_frames

RED, BLUE, CLEAR = (255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)


def write_video(path, frames, rate=Fraction(25), codec="libx264", times=None, **options):
    """A video as other programs write it: no tag of ours, key frames far apart, B-frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = 1 / rate
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times[number] if times else number), 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def scene():
    return moving_disc(60, 48, 64)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "5", "g": "12", "bf": "2"}),
        ("a.mov", "mpeg4", {}),
        ("a.mkv", "libx264", {"crf": "5", "g": "250"}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime"}),
        ("a.webm", "libvpx", {}),
        ("a.h264", "libx264", {"crf": "5"}),
        ("a.ts", "libx264", {"crf": "5", "g": "12"}),
    ],
)
def test_videos_are_counted_timed_and_read_at_any_place(tmp_path, scene, name, codec, options):
    source = open_frames(write_video(tmp_path / name, scene, codec=codec, **options))
    assert (len(source), source.width, source.height) == (60, 64, 48)
    assert source.fps == pytest.approx(25, rel=0.02) and source.duration == pytest.approx(2.4, abs=0.05)
    whole = source.frames()
    assert psnr(whole, scene) > 26
    closest = [int(np.abs(scene.astype(int) - frame).mean((1, 2, 3)).argmin()) for frame in whole[::7]]
    assert closest == list(range(0, 60, 7)), "frames in their right places"
    for indices in ([59], [30, 31], [44, 3, 3, 17], range(20, 60, 4)):
        assert np.array_equal(source.frames(indices), whole[list(indices)])


def test_uneven_video_times_become_a_steady_rate(tmp_path, scene):
    times = [0, 1, 2, 3, 10, 11, 12, 13]  # frame 3 stands for 7
    source = open_frames(write_video(tmp_path / "a.mkv", scene[:8], times=times, bf="0"))
    assert source.shown.tolist() == [0, 1, 2, *[3] * 7, 4, 5, 6, 7]
    assert source.fps == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize(("turn", "corner"), [((0, 1, -1, 0), (3, -3)), ((0, -1, 1, 0), (-3, 3))])
def test_videos_of_turned_phones_are_upright(tmp_path, turn, corner):
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = 255  # the top left is white
    data = bytearray(write_video(tmp_path / "a.mp4", frames).read_bytes())
    matrix = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in turn)
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    source = open_frames(tmp_path / "turned.mp4")
    assert (source.width, source.height) == (32, 64)
    whites = {
        place: source.frames([0])[0][place].mean() > 200 for place in [(3, 3), (3, -3), (-3, 3), (-3, -3)]
    }
    assert [place for place, white in whites.items() if white] == [corner]


@pytest.mark.parametrize("name", ["a.webp", "a.apng", "a.gif"])
def test_transparency_shows_the_background(tmp_path, name):
    images = [Image.new("RGBA", (16, 16), CLEAR) for _ in range(3)]
    for number, image in enumerate(images):
        image.paste(RED, (4 * number, 0, 4 * number + 4, 8))
        image.paste(RED, (4 * number, 8, 4 * number + 2, 16))
    options = {"lossless": True} if name == "a.webp" else {"disposal": 2 if name == "a.gif" else 1}
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100, **options)
    for background in ((255, 255, 255), (0, 255, 0)):
        frames, fps = read_frames(tmp_path / name, background)
        assert frames.shape == (3, 16, 16, 3) and fps == pytest.approx(10)
        for number, frame in enumerate(frames):
            expected = np.tile(np.array(background, np.uint8), (16, 16, 1))
            expected[:8, 4 * number : 4 * number + 4] = RED[:3]
            expected[8:, 4 * number : 4 * number + 2] = RED[:3]
            assert np.array_equal(frame, expected)


def test_half_transparent_pixels_are_mixed(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.abs(read_frames(tmp_path / "a.png")[0].astype(int) - [255, 127, 127]).max() <= 1


def test_gif_disposal_is_obeyed(tmp_path):
    """The second frame covers a part and goes again (3: previous); the third adds beside it."""
    images = [
        Image.new("RGBA", (8, 8), BLUE),
        Image.new("RGBA", (8, 8), BLUE),
        Image.new("RGBA", (8, 8), BLUE),
    ]
    images[1].paste(RED, (0, 0, 4, 4))
    images[2].paste(RED, (4, 4, 8, 8))
    images[0].save(
        tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100, disposal=[1, 3, 1]
    )
    frames, _ = read_frames(tmp_path / "a.gif")
    assert [
        np.array_equal(frame, np.asarray(image.convert("RGB")))
        for frame, image in zip(frames, images, strict=True)
    ] == [True] * 3


def test_gif_without_times_runs_as_in_a_browser_and_holds_are_repeats(tmp_path):
    images = [Image.new("RGB", (8, 8), (80 * n, 0, 0)) for n in range(3)]
    images[0].save(tmp_path / "fast.gif", save_all=True, append_images=images[1:], duration=0)
    assert open_frames(tmp_path / "fast.gif").fps == pytest.approx(10)
    images[0].save(tmp_path / "hold.gif", save_all=True, append_images=images[1:], duration=[100, 100, 500])
    source = open_frames(tmp_path / "hold.gif")
    assert source.shown.tolist() == [0, 1, 2, 2, 2, 2, 2] and source.fps == pytest.approx(10)


def test_the_still_for_programs_without_animation_is_no_frame(tmp_path):
    images = [Image.new("RGB", (8, 8), (80 * n, 0, 0)) for n in range(4)]
    images[0].save(
        tmp_path / "a.apng", save_all=True, append_images=images[1:], duration=100, default_image=True
    )
    assert read_frames(tmp_path / "a.apng")[0][:, 0, 0, 0].tolist() == [80, 160, 240]


def test_a_folder_of_stills_is_read_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    frames, fps = read_frames(tmp_path)
    assert frames[:, 0, 0, 0].tolist() == [1, 2, 10] and fps == 8.0
    Image.new("RGB", (9, 8)).save(tmp_path / "frame3.png")
    with pytest.raises(DataError, match=r"frame3.png is 9x8, but the first image there is 8x8"):
        read_frames(tmp_path)


def test_deep_and_grey_images_keep_their_light(tmp_path):
    deep = np.full((4, 4), 0x8000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert read_frames(tmp_path / "deep.png")[0].ravel()[0] == 128
    assert read_frames(tmp_path / "grey.png")[0].shape == (1, 4, 4, 3)


def test_a_source_goes_to_other_processes_and_knows_its_ends(clip, tmp_path):
    source = pickle.loads(pickle.dumps(open_frames(clip.save(tmp_path / "clip.mp4"))))
    assert np.array_equal(source.frames([-1]), source.frames()[-1:])
    assert source.frames([]).shape == (0, 48, 64, 3)
    with pytest.raises(IndexError):
        source.frames([len(source)])


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.apng", "clip.mp4", "clip.webm"])
def test_what_a_file_is_its_content_says(clip, tmp_path, name):
    path = clip.save(tmp_path / name).rename(tmp_path / "download.bin")
    assert len(Clip.load(path)) == len(clip)


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.apng", "clip.mp4"])
def test_truncated_files_are_named_with_the_reason(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    path = Clip(noise, 8.0).save(tmp_path / name)
    data = path.read_bytes()
    for part in (0.02, 0.9):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(DataError, match=name):
            read_frames(path)


def test_what_is_no_clip_is_said_in_a_sentence(tmp_path):
    (tmp_path / "page.gif").write_text("<!doctype html><html><body>404</body></html>")
    (tmp_path / "caption.txt").write_text("a dog runs\n" * 50)
    (tmp_path / "empty.webp").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    for name, sentence in (
        ("page.gif", "page.gif is neither an image nor a video"),
        ("caption.txt", "caption.txt (has no video in it|is neither)"),
        ("empty.webp", "empty.webp is empty"),
        ("folder", "folder has no images in it"),
        ("sound.wav", "sound.wav has no video in it"),
        ("missing.gif", "missing.gif does not exist"),
    ):
        with pytest.raises(DataError, match=sentence):
            open_frames(tmp_path / name)


def test_a_playlist_fetches_nothing(tmp_path):
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(DataError, match=r"list.m3u8"):
        open_frames(tmp_path / "list.m3u8")


def test_what_no_decoder_takes_is_said(tmp_path):
    (tmp_path / "a.mp4").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(DataError, match=r"a.mp4 is coded in a way that this installation"):
        open_frames(tmp_path / "a.mp4")
