"""Video files through PyAV, whose wheel brings FFmpeg along: writes H.264 and VP9, reads what FFmpeg reads.

Nothing needs to be on the PATH. Colours are BT.709 and say so, since players guess differently when nothing
is said.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from stillmotion.errors import DataError, OutputError
from stillmotion.video.colour import rgb, upright_size
from stillmotion.video.pixels import MOST_PIXELS, Colour, enlarged, even
from stillmotion.video.stream_info import StreamInfo

BT709, LIMITED_RANGE = 1, 1  # numbers of ITU-T H.273
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
MOST_ASPECT = 8.0
"""width of a pixel over its height, or the other way round; what says more is taken for square"""
IMAGES = Disposition.attached_pic | Disposition.timed_thumbnails
"""covers and previews, which are no video"""
TEXT_FORMATS = ("tty", "srt", "webvtt", "ass")
"""FFmpeg 'plays' text files; a caption beside a video is not a video."""


def write_mp4(path: Path, frames: np.ndarray, fps: float, comment: str, scale: int, quality: int) -> None:
    """H.264 in the flavour that all players and browsers know; `quality` becomes x264's crf (90 is 18)."""
    options = {"crf": str(min(51, round(18 + (90 - quality) * 0.6)))}
    _write(path, "mp4", CODECS[".mp4"], enlarged(frames, scale), fps, comment, options)


def write_webm(path: Path, frames: np.ndarray, fps: float, comment: str, scale: int, quality: int) -> None:
    """VP9 at constant quality; `quality` becomes its crf (90 is 24)."""
    crf = min(63, round(24 + (90 - quality) * 0.6))
    options = {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    _write(path, "webm", CODECS[".webm"], enlarged(frames, scale), fps, comment, options)


def check_encoder(codec: str) -> None:
    """OutputError if FFmpeg was built without this encoder."""
    if codec not in av.codecs_available:
        raise OutputError(
            f"This installation of PyAV has no {codec}: save as .webp or .gif, or `pip install av`."
        )


def _write(
    path: Path,
    format: str,
    codec: str,
    frames: Iterator[np.ndarray],
    fps: float,
    comment: str,
    options: dict[str, str],
) -> None:
    check_encoder(codec)
    rate = exact_rate(fps)
    flags = {"movflags": "+faststart"} if format == "mp4" else {}
    try:
        with av.open(f"file:{path}", "w", format=format, options=flags) as container:
            container.metadata["comment"] = comment
            stream: av.VideoStream | None = None
            for number, pixels in enumerate(map(even, frames)):
                stream = stream or _stream(container, codec, rate, pixels.shape, options)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            if stream is not None:
                container.mux(stream.encode())
    except FFmpegError as error:
        raise OutputError(f"The video could not be encoded: {error.strerror or error}.") from error


def exact_rate(fps: float) -> Fraction:
    """The rate that is meant: 29.97, 23.98 and 59.94 are NTSC's 30000/1001, 24000/1001 and 60000/1001."""
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if fps > 10 and fps % 1 and abs(ntsc - Fraction(fps)) < Fraction(5, 1000):
        return ntsc
    return Fraction(fps).limit_denominator(1001)


def _stream(
    container: av.container.OutputContainer, codec: str, rate: Fraction, shape: tuple, options: dict[str, str]
) -> av.VideoStream:
    stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=options))
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 0  # quality decides
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    return stream


def scan_video(path: Path) -> StreamInfo:
    """Counts a video's frames by its packets (headers may lie or say nothing) and decodes only the first.

    A recording that was cut begins at its first key frame, as in every player.
    """
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if not packets:
            raise DataError(f"{path} has no frames in it.")
        packets = _from_first_key(packets)
        tail = packets[-1].duration or 0
        times = sorted(packet.pts for packet in packets if packet.pts is not None)
        comment = next((text for key, text in container.metadata.items() if key.lower() == "comment"), None)
        rate = stream.average_rate or stream.guessed_rate
        unit = float((stream.time_base or Fraction(1, 1000)) * 1000)
    width, height = _first_size(path)
    if len(set(times)) < len(packets):  # raw streams and some AVI have no usable times
        duration_ms = float(1000 / rate) if rate else 0.0
        return StreamInfo(width, height, (duration_ms,) * len(packets), 1.5, comment)
    durations_ms = [(later - earlier) * unit for earlier, later in pairwise(times)]
    last = tail * unit or (float(np.median(durations_ms)) if durations_ms else 0.0)
    return StreamInfo(width, height, (*durations_ms, last), 1.5, comment, tuple(times))


def _from_first_key(packets: list[av.Packet]) -> list[av.Packet]:
    """Without what comes before the first key frame, in the file or in time; all if there is no key frame."""
    first = next((number for number, packet in enumerate(packets) if packet.is_keyframe), 0)
    start = packets[first].pts
    if first == 0 or start is None:
        return packets[first:]
    return [packet for packet in packets[first:] if packet.pts is None or packet.pts >= start]


def decode_video(
    path: Path, info: StreamInfo, wanted: Sequence[int], background: Colour
) -> Iterator[tuple[int, np.ndarray]]:
    """The `wanted` frames, ascending, decoding from the last key frame before the first of them."""
    timestamps = info.timestamps or range(len(info.durations_ms))
    first, numbers = timestamps[wanted[0]], {timestamps[number]: number for number in wanted}
    for seek in (True, False) if info.timestamps and wanted[0] > 0 else (False,):
        with _opened(path) as (container, stream):
            if seek:
                container.seek(first, stream=stream)
            for count, frame in enumerate(container.decode(stream)):
                if seek and count == 0 and (frame.pts is None or frame.pts > first):
                    break  # transport streams may land too late: once more from the start
                place = frame.pts if info.timestamps else count
                number = None if place is None else numbers.pop(place, None)
                if number is not None:
                    yield number, rgb(frame, info.width, info.height, background)
                if not numbers:
                    return
    raise DataError(
        f"{path} is damaged: frame {min(numbers.values())} of {len(timestamps)} cannot be decoded."
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and its first video stream; FFmpeg's errors become `DataError`s that name the file."""
    try:  # a playlist must not fetch anything from a network
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except FFmpegError as error:
        raise DataError(f"{path} is neither an image nor a video: {error.strerror}.") from error
    with container:
        videos = [stream for stream in container.streams.video if not stream.disposition & IMAGES]
        if not videos or container.format.name in TEXT_FORMATS:
            raise DataError(f"{path} has no video in it.")
        stream = videos[0]
        if not hasattr(stream, "width"):  # PyAV gives a stream without a decoder no properties of video
            raise DataError(f"{path} is coded in a way that this installation of FFmpeg cannot decode.")
        if stream.width * stream.height > MOST_PIXELS:
            raise DataError(f"{path} has {stream.width}x{stream.height} pixels, which is too large.")
        stream.thread_type = "AUTO"
        try:
            yield container, stream
        except FFmpegError as error:
            raise DataError(f"{path} is damaged: {error.strerror}.") from error


def _first_size(path: Path) -> tuple[int, int]:
    """As shown; also where this file's peculiarities are said."""
    with _opened(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1)
        for frame in container.decode(stream):
            if frame.interlaced_frame:
                warnings.warn(
                    f"{path} is interlaced: moving edges have combs; deinterlace it first.", stacklevel=2
                )
            return upright_size(frame, aspect if 1 / MOST_ASPECT <= aspect <= MOST_ASPECT else 1.0)
    raise DataError(f"{path} is damaged: its first frame cannot be decoded.")
