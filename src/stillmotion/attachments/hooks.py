"""Attachments that are not on `attachments.base` yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class HookSet:
    """On until `.detach()`, or until the end of a `with`; handles are what `register_forward_hook` gives."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    @property
    def attached(self) -> bool:
        """Whether its hooks are on."""
        return bool(self._handles)

    def detach(self) -> None:
        """Removes the hooks: the network is what it was before. A second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    remove = detach  # so that one can be a handle of another

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()
