"""Videos as phones, cameras, editors and recorders write them: turning, pixel shape, colours, times, cuts."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from stillmotion.video import Clip, open_frames, read_frames
from stillmotion.video.ffmpeg import exact_rate
from stillmotion.video.timing import constant_rate

IMAGE = np.full((32, 64, 3), 40, np.uint8)
IMAGE[:16, :32], IMAGE[16:, 32:] = (220, 30, 30), (30, 30, 220)  # red above left, blue below right
PLAIN = np.stack([IMAGE] * 3)


def write(path, frames, codec="libx264", format="rgb24", pix_fmt="yuv420p", times=None, tags=(), **options):
    """`tags` are matrix, range and transfer (ITU-T H.273); frames of format "planes" are planes of YUV."""
    with av.open(str(path), "w") as container:
        sar = options.pop("sar", Fraction(1))
        stream = container.add_stream(codec, rate=25, options=options)
        planes = format == "planes"
        stream.height, stream.width = frames[0].shape[-2:] if planes else frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        stream.sample_aspect_ratio = sar
        for name, value in zip(("colorspace", "color_range", "color_trc"), tags, strict=False):
            setattr(context, name, value)
        unit = Fraction(1, 1000 if times else 25)
        context.time_base = stream.time_base = unit
        for number, pixels in enumerate(frames):
            if planes:
                frame = av.VideoFrame(pixels.shape[2], pixels.shape[1], pix_fmt)
                for plane, values in zip(frame.planes, pixels, strict=True):
                    rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
                    rows[:, : plane.width] = values
                    plane.update(rows.tobytes())
                frame.colorspace, frame.color_range = tags[:2]
            else:
                frame = av.VideoFrame.from_ndarray(pixels, format=format)
            frame.pts, frame.time_base = (times[number] if times else number), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(path, a, b, c, d):
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


ORIENTATIONS = {
    (1, 0, 0, 1): IMAGE,
    (-1, 0, 0, 1): IMAGE[:, ::-1],
    (1, 0, 0, -1): IMAGE[::-1],
    (-1, 0, 0, -1): IMAGE[::-1, ::-1],
    (0, 1, -1, 0): np.rot90(IMAGE, -1),
    (0, -1, 1, 0): np.rot90(IMAGE),
    (0, 1, 1, 0): IMAGE.swapaxes(0, 1),
    (0, -1, -1, 0): IMAGE[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
@pytest.mark.parametrize("sar", [Fraction(1), Fraction(2)])
def test_every_display_matrix_is_obeyed_also_with_wide_pixels(tmp_path, matrix, sar):
    path = with_matrix(write(tmp_path / "a.mp4", PLAIN, crf="5", sar=sar), *matrix)
    expected = ORIENTATIONS[matrix].repeat(int(sar), 0 if matrix[0] == 0 else 1)
    frame = read_frames(path)[0][0]
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 12  # the colours bleed at edges


@pytest.mark.parametrize(
    ("sar", "size"),
    [
        (Fraction(16, 15), (68, 32)),
        (Fraction(8, 9), (64, 36)),
        (Fraction(4, 3), (85, 32)),
        (Fraction(500), (64, 32)),
    ],
)
def test_pixels_become_square_and_none_is_lost(tmp_path, sar, size):
    source = open_frames(write(tmp_path / "a.mkv", PLAIN, sar=sar))
    assert (source.width, source.height) == size and source.frames([2]).shape == (1, *size[::-1], 3)


def yuv(rgb, kr, kb, full):
    """8-bit Y, Cb, Cr by the formulas of ITU-R BT.601, 709 and 2020."""
    r, g, b = (value / 255 for value in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    if full:
        return round(255 * y), round(128 + 255 * cb), round(128 + 255 * cr)
    return round(16 + 219 * y), round(128 + 224 * cb), round(128 + 224 * cr)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "kr", "kb", "lines"),
    [
        (1, 0.2126, 0.0722, 32),
        (5, 0.299, 0.114, 32),
        (6, 0.299, 0.114, 720),
        (9, 0.2627, 0.0593, 32),
        (2, 0.299, 0.114, 32),
        (2, 0.2126, 0.0722, 720),
    ],
)
def test_matrix_and_range_are_those_of_the_file(tmp_path, matrix, kr, kb, lines, full):
    colour = (200, 60, 30)
    planes = np.tile(np.array(yuv(colour, kr, kb, full), np.uint8)[:, None, None], (1, lines, 64))
    path = write(tmp_path / "a.mkv", [planes], "ffv1", "planes", "yuv444p", tags=(matrix, 1 + full))
    assert np.abs(read_frames(path)[0][0].astype(int) - colour).max() <= 3


def signal(transfer, nits):
    """Of a grey in PQ (SMPTE ST 2084) or HLG (ITU-R BT.2100, a display of 1,000 nits)."""
    if transfer == 16:
        light = (nits / 10_000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * light) / (1 + 18.6875 * light)) ** 78.84375
    scene = (nits / 1000) ** (1 / 1.2)
    return (
        (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
    )


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize(
    ("nits", "expected"), [(203 * 0.18, 118), (203 * 0.5, 188), (203, 237), (1000, 255), (0, 0)]
)
def test_hdr_is_brought_to_a_screen(tmp_path, transfer, nits, expected):
    luma = round(64 + 876 * signal(transfer, nits)) if nits else 64
    planes = np.full((3, 32, 64), 512, np.uint16)
    planes[0] = luma
    path = write(tmp_path / "a.mkv", [planes], "ffv1", "planes", "yuv444p10le", tags=(9, 1, transfer))
    grey = read_frames(path)[0][0].astype(int)
    assert np.abs(grey - expected).max() <= 3
    plain = write(tmp_path / "b.mkv", [planes], "ffv1", "planes", "yuv444p10le", tags=(9, 1, 1))
    assert abs(int(read_frames(plain)[0].max()) - round(255 * (luma - 64) / 876)) <= 2


def test_alpha_of_videos_shows_the_background(tmp_path):
    clear = np.zeros((1, 32, 64, 4), np.uint8)
    clear[:, :16] = (255, 0, 0, 255)
    frame = read_frames(write(tmp_path / "a.mov", clear, "qtrle", "rgba", "argb"), (0, 0, 255))[0][0]
    assert frame[8, 8].tolist() == [255, 0, 0] and frame[24, 8].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.flv", "a.wmv", "a.3gp", "a.ogv", "a.m4v", "a.m2ts"])
def test_containers_of_all_kinds_are_read(tmp_path, name):
    codecs = {"a.mpg": "mpeg2video", "a.wmv": "wmv2", "a.flv": "flv", "a.ogv": "libtheora", "a.3gp": "mpeg4"}
    codec = codecs.get(name, "libx264")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    frames, fps = read_frames(write(tmp_path / name, np.concatenate([PLAIN] * 4), codec))
    assert frames.shape == (12, 32, 64, 3) and fps == pytest.approx(25, rel=0.03)


def test_a_cut_recording_begins_at_its_first_key_frame(tmp_path):
    frames = [np.roll(IMAGE, 2 * number, 1) for number in range(60)]
    whole = write(tmp_path / "whole.ts", frames, g="30", keyint_min="30", sc_threshold="0", bf="2")
    data = whole.read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[len(data) // 4 // 188 * 188 :])
    source = open_frames(tmp_path / "cut.ts")
    assert len(source) == 30 and len(open_frames(whole)) == 60
    assert np.array_equal(source.frames([0, 29]), open_frames(whole).frames([30, 59]))


def test_a_cover_is_no_video(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "cover.png")
    path = write(tmp_path / "a.mp4", PLAIN)
    with av.open(str(tmp_path / "b.mp4"), "w") as out, av.open(str(path)) as video:
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        target = out.add_stream_from_template(video.streams.video[0])
        out.mux(cover.encode(av.VideoFrame.from_ndarray(IMAGE, format="rgb24")))
        for packet in video.demux(video.streams.video[0]):
            if packet.size:
                packet.stream = target
                out.mux(packet)
    assert len(open_frames(tmp_path / "b.mp4")) == 3


def test_interlaced_video_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"a\.mpg is interlaced"):
        open_frames(write(tmp_path / "a.mpg", PLAIN, "mpeg2video", flags="+ilme+ildct", top="1"))


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (119.88, Fraction(120000, 1001)),
        *((rate, Fraction(rate)) for rate in (1, 4.0, 8, 12.5, 24, 25.0, 30, 60, 7.5)),
    ],
)
def test_rates_of_television_stay_exact(tmp_path, fps, exact):
    assert exact_rate(fps) == exact
    if fps in (23.976, 12.5):
        clip = Clip(PLAIN, fps)
        for name in ("a.mp4", "a.webm"):
            with av.open(str(clip.save(tmp_path / name))) as opened:
                assert opened.streams.video[0].average_rate == exact


@pytest.mark.parametrize(
    ("durations_ms", "fps", "frames"),
    [
        ([1, 1, 2998, 3000, 3000, 33], 0.332, 3),
        ([4] * 90 + [33] * 60, 30, 71),
        ([4] * 100, 250, 100),
        ([100, 100, 500], 10, 7),
        ([1000 / 60] * 20 + [5000], 60, 320),
    ],
)
def test_bursts_set_no_rate_but_steady_fast_cameras_and_holds_do(durations_ms, fps, frames):
    rate, shown = constant_rate(durations_ms, 1.5)
    assert rate == pytest.approx(fps, rel=0.02) and len(shown) == frames
    assert len(shown) / rate == pytest.approx(sum(durations_ms) / 1000) and np.all(np.diff(shown) >= 0)


def test_a_frame_that_stands_for_decades_does_not_fill_the_memory(tmp_path):
    source = open_frames(write(tmp_path / "a.mkv", PLAIN, times=[0, 40, 10**12], bf="0"))
    assert len(source) == 3 and source.frames([2]).shape == (1, 32, 64, 3)


def test_videos_that_begin_before_or_after_zero_are_whole(tmp_path):
    frames = [np.roll(IMAGE, 8 * number, 1) for number in range(6)]
    for start in (-80, 5000):
        times = [start + 40 * number for number in range(6)]
        source = open_frames(write(tmp_path / "a.mkv", frames, times=times, crf="5", bf="0"))
        assert len(source) == 6 and source.fps == pytest.approx(25, rel=0.03)
        assert np.abs(source.frames([5])[0].astype(int) - frames[5]).mean() < 12
