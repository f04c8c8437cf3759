"""Condition: fields of one control of a clip, and what it puts on the pipeline while the clip is drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from stillmotion.errors import RequestError
from stillmotion.request.conditions import ConditionData, kind_of

if TYPE_CHECKING:
    from torch import Tensor

    from stillmotion.attachments.base import Attachment
    from stillmotion.diffusion.pipeline import Pipeline
    from stillmotion.request.request import CompleteRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One clip about to be drawn: the pipeline and the complete request."""

    pipeline: Pipeline
    request: CompleteRequest
    kept: MutableMapping[Hashable, Any] = field(default_factory=dict)
    """Models of conditions that were loaded before; those that this clip does not use are forgotten."""
    used: set[Hashable] = field(default_factory=set)

    def model(self, key: Hashable, load: Callable[[], T]) -> T:
        """The model kept under this key (such as its kind and file); loaded on first use."""
        self.used.add(key)
        if key not in self.kept:
            self.kept[key] = load()
        found: T = self.kept[key]
        return found


@dataclass(frozen=True)
class Contribution:
    """What a condition adds.

    Args:
        attachments: go on the pipeline while the clip is drawn, in this order.
        pipeline_arguments: for the call of the pipeline.
        initial_latents: where drawing starts instead of from noise, (frames, c, h, w).
    """

    attachments: tuple[Attachment, ...] = ()
    pipeline_arguments: Mapping[str, Any] = field(default_factory=dict)
    initial_latents: Tensor | None = None


class Condition(ConditionData):
    """Base class of all conditions: fields as in `ConditionData`, and `prepare`."""

    @abstractmethod
    def prepare(self, run: Run) -> Contribution:
        """What this condition adds to a clip; raises StillmotionError kin for what does not fit."""
        raise NotImplementedError(f"{type(self).__name__} has no prepare(run)")


@contextmanager
def attached(attachments: Sequence[Attachment], pipeline: Pipeline, frames: int) -> Iterator[None]:
    """Attachments on a pipeline for one block, in their order; they come off also after an exception."""
    with ExitStack() as stack:
        for attachment in attachments:
            stack.enter_context(attachment.attach(pipeline, frames))
        yield


def prepare(run: Run) -> Contribution:
    """What all conditions of the request add together; RequestError where two of them claim the same."""
    attachments: list[Attachment] = []
    arguments: dict[str, Any] = {}
    latents: Tensor | None = None
    for condition in run.request.conditions:
        if not isinstance(condition, Condition):
            raise RequestError(f"{type(condition).__name__} has no prepare(run): it is no Condition.")
        added = condition.prepare(run)
        attachments += added.attachments
        twice = sorted(arguments.keys() & added.pipeline_arguments.keys())
        if twice or (latents is not None and added.initial_latents is not None):
            what = ", ".join(twice) or "the start of the clip"
            raise RequestError(
                f"Two conditions set {what}; the second is {kind_of(condition)}. Leave one out."
            )
        arguments |= added.pipeline_arguments
        latents = added.initial_latents if latents is None else latents
    for key in run.kept.keys() - run.used:
        del run.kept[key]
    return Contribution(tuple(attachments), arguments, latents)
