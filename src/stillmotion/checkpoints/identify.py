"""What a file of weights is, from names and shapes alone: the table of rules is in kind_rules.py."""

from __future__ import annotations

from stillmotion.checkpoints.checkpoint import Source, call_name, open_checkpoint
from stillmotion.checkpoints.file_kinds import FileInfo
from stillmotion.checkpoints.files import Header
from stillmotion.checkpoints.kind_rules import info_of

__all__ = ["call_name", "identify"]


def identify(file: Source | Header, name: str | None = None) -> FileInfo:
    """What a file, a folder or a header is; kind "unknown" if no rule fits. Costs nothing for an open one.

    `name` is what the user calls it (it may hint at Lightning or AnimateLCM); its own by default.
    Raises `WeightsError` or one of its kin if the file cannot be read at all.
    """
    if isinstance(file, Header):
        return info_of(file, name or file.name)
    found = open_checkpoint(file)
    return info_of(found.header, name) if name and not found.is_pipeline else found.info
