"""Decoded video frames as 8-bit RGB for a screen: matrix, range, HDR, turning, pixels that are not square.

unspecified matrix    BT.709 from 720 lines on, else BT.601, as players take it
PQ, HLG               light in units of diffuse white (203 nits, ITU-R BT.2408), BT.2020 to BT.709, the
                      highlights compressed, then sRGB
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from PIL import Image

from stillmotion.video.pixels import Colour, opaque

if TYPE_CHECKING:
    from typing_extensions import Buffer

SWS_709, SWS_601, SWS_240M, SWS_2020 = 1, 5, 7, 9
MATRICES = {1: SWS_709, 4: 4, 5: SWS_601, 6: SWS_601, 7: SWS_240M, 9: SWS_2020, 10: SWS_2020}
"""ITU-T H.273 matrix coefficients -> what swscale calls them"""
ALPHA = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya", "pal8")
PQ, HLG = 16, 18
"""ITU-T H.273 transfer characteristics"""
WHITE_NITS = 203.0
HLG_PEAK_NITS = 1000.0
KNEE = 0.6
"""linear light up to which tone mapping changes nothing; diffuse white (1) becomes 0.85"""
BT2020_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""ITU-R BT.2087"""
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
LINEAR = 4096
"""steps of linear light in the table back to sRGB"""


def rgb(frame: av.VideoFrame, width: int, height: int, background: Colour) -> np.ndarray:
    """(height, width, 3) uint8 of a frame, upright, scaled to that size; alpha shows `background`."""
    signs = _orientation(frame)
    wide, tall = (height, width) if signs[0] else (width, height)
    if int(getattr(frame, "color_trc", 0)) in (PQ, HLG):
        pixels = _tone_mapped(_reformatted(frame, wide, tall, "rgb48le"), int(frame.color_trc))
    elif frame.format.name.startswith(ALPHA):
        pixels = opaque(Image.fromarray(_reformatted(frame, wide, tall, "rgba")), background)
    else:
        pixels = _reformatted(frame, wide, tall, "rgb24")
    return _turned(pixels, *signs)


def upright_size(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """Width and height of a frame as players show it: square pixels, none of them lost."""
    width = round(frame.width * max(1.0, pixel_aspect))
    height = round(frame.height / min(1.0, pixel_aspect))
    return (height, width) if _orientation(frame)[0] else (width, height)


def _reformatted(frame: av.VideoFrame, width: int, height: int, format: str) -> np.ndarray:
    """The pixels in another format; versions of PyAV differ in the matrix that they assume."""
    if frame.format.name.startswith(("rgb", "bgr", "gbr", "gray", "pal", "argb", "abgr", "mono", "0", "ya")):
        return frame.reformat(width, height, format).to_ndarray()
    matrix = MATRICES.get(int(frame.colorspace), SWS_709 if frame.height >= 720 else SWS_601)
    other = SWS_601 if matrix != SWS_601 else SWS_709  # older versions look at neither if both are equal
    scaled = frame.reformat(width, height, format, src_colorspace=matrix, dst_colorspace=other)
    return scaled.to_ndarray()


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Of the display matrix: whether x and y change places, and whether x and y then run backwards."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(cast("Buffer", found)), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _turned(pixels: np.ndarray, swapped: bool, left: bool, up: bool) -> np.ndarray:
    pixels = pixels.swapaxes(0, 1) if swapped else pixels
    return np.ascontiguousarray(pixels[:: -1 if up else 1, :: -1 if left else 1])


def _tone_mapped(signal: np.ndarray, transfer: int) -> np.ndarray:
    """uint8 sRGB of 16-bit HDR signals (h, w, 3); row by row of memory, never all in float at once."""
    result = np.empty(signal.shape, np.uint8)
    for row in range(0, len(signal), 64):
        light = _linear(transfer)[signal[row : row + 64]]
        if transfer == HLG:  # the display's gamma on luminance, ITU-R BT.2100
            light = light * np.maximum(light @ BT2020_LUMA, 1e-6)[..., None] ** 0.2
            light *= HLG_PEAK_NITS / WHITE_NITS
        light = np.maximum(light @ BT2020_TO_709.T, 0)
        peak = light.max(-1, keepdims=True)
        bright = KNEE + (1 - KNEE) * -np.expm1(-(peak - KNEE) / (1 - KNEE))
        light *= np.where(peak > KNEE, bright / np.maximum(peak, KNEE), 1)
        result[row : row + 64] = _srgb()[np.rint(light * LINEAR).astype(np.intp)]
    return result


@lru_cache(maxsize=2)
def _linear(transfer: int) -> np.ndarray:
    """(65536,) float32: PQ in units of diffuse white, HLG as scene light up to 1."""
    signal = np.linspace(0, 1, 65536)
    if transfer == PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = signal ** (1 / m2)
        return (10_000 / WHITE_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype("f4")
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ITU-R BT.2100
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _srgb() -> np.ndarray:
    """(LINEAR + 1,) uint8."""
    light = np.linspace(0, 1, LINEAR + 1)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(signal * 255).astype(np.uint8)
