"""Pixels in files: the Clip, its writers and readers, the request it carries, sheets."""

from stillmotion.video.clip import Clip, grid
from stillmotion.video.readers import FrameSource, open_frames, read_frames
from stillmotion.video.writers import EXTENSIONS, check_output

__all__ = ["EXTENSIONS", "Clip", "FrameSource", "check_output", "grid", "open_frames", "read_frames"]
