"""Animator: a text-to-image model, motion and adapters become a Clip. The only place where the rooms meet.

    request -> noise by seed -> the stock diffusers pipeline, motion attached -> latents -> VAE -> Clip

It holds no sampler and no pipeline of its own: a clip is `num_images_per_prompt=frames` images, and
whichever diffusers pipeline belongs to the base draws them. Two Animators share nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import torch
from typing_extensions import Self, Unpack

from stillmotion.errors import StillmotionWarning
from stillmotion.request import Request
from stillmotion.request.model_card import ModelCard
from stillmotion.request.request import CompleteRequest
from stillmotion.request.sections import Models
from stillmotion.request.typed import RequestFields
from stillmotion.sampling.calls import CallFields, StepCallback, requests_of
from stillmotion.sampling.checks import check_request, suspects
from stillmotion.sampling.defaults import family_defaults
from stillmotion.sampling.draw import draw
from stillmotion.sampling.latents import Latents
from stillmotion.sampling.loading import LoraWeights, load_models, move_models
from stillmotion.sampling.notes import prompt_notes
from stillmotion.sampling.progress import ProgressCallback, no_progress, progress_bar
from stillmotion.sampling.sleeping import SleepingAttachments
from stillmotion.video import Clip

if TYPE_CHECKING:
    from stillmotion.checkpoints.lora_model import Lora
    from stillmotion.diffusion.pipeline import Pipeline
    from stillmotion.motion.module import MotionModules
    from stillmotion.request.layer_weights import LayerWeights
    from stillmotion.request.model_files import ModelFile


class Animator:
    """A diffusers pipeline with motion that fits its UNet, ready for requests.

    `Animator.load` makes one from names and files; the constructor takes what is loaded already: `card` gives
    defaults and concepts, `models` what the request in a clip says about base, motion, loras and dtype.
    `loras` are put on for each clip and taken off after it; `notes` are told to the user with every request;
    `words` are those that its textual inversions have added; `files` are records of the models' files, which
    a clip carries.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        motion: MotionModules | None = None,
        card: ModelCard | None = None,
        models: Models | Mapping[str, Any] | None = None,
        loras: Mapping[Lora, LayerWeights | float] | None = None,
        notes: Sequence[str] = (),
        words: Sequence[str] = (),
        files: Sequence[ModelFile] = (),
    ) -> None:
        self.pipeline = pipeline
        self.motion = motion
        self.card = card or ModelCard()
        self.models = models if isinstance(models, Models) else Models.parse(**(models or {}))
        self.loras = dict(loras or {})
        self.notes, self.words, self.files = tuple(notes), tuple(words), tuple(files)
        self.condition_models: dict[Hashable, Any] = {}
        self._attachments = SleepingAttachments()
        self.family = motion.family.updated(**self.card.schedule.said()) if motion is not None else None
        self.defaults = (
            family_defaults(self.family, pipeline)
            | self.card.defaults
            | ({} if motion is not None else {"frames": 1})
        )

    @classmethod
    def load(
        cls,
        base: str | None = None,
        motion: str | None = None,
        loras: LoraWeights | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        motion_loras: LoraWeights | None = None,
        vae: str | None = None,
        embeddings: Mapping[str, str] | None = None,
        **others: Any,
    ) -> Animator:
        """An Animator from names: files, folders, hub names or bundled models; by default the bundled one.

        Args:
            base: a text-to-image model.
            motion: motion that fits it; the base's own by default, "none" for stills.
            loras: files and their weights: numbers, text or mappings as in `LayerWeights`.
            dtype: of UNet and text encoders; by default what this machine does well.
            device: by default the best that this machine has.
            motion_loras: LoRAs for the motion, as `loras`.
            vae: used instead of the base's.
            embeddings: files of textual inversions and the words they stand for ("" for their own).
            others: none; names that other libraries have are explained.

        WeightsError in one sentence if files are damaged or do not fit.
        """
        loaded = load_models(base, motion, loras, dtype, device, motion_loras, vae, embeddings, **others)
        return cls(**vars(loaded))

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.pipeline.unet.device

    def to(self, place: str | int | torch.device | torch.dtype) -> Self:
        """Moves everything to a device, or to a precision (all but the VAE); returns itself.

        RequestError for a device that this machine does not have.
        """
        dtype = move_models(self.pipeline, self.motion, place)
        if dtype is not None:
            self.models = self.models.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
        self.condition_models.clear()
        return self

    @overload
    def animate(
        self, prompt: str | Request, on_progress: ProgressCallback | None = None, **fields: Unpack[CallFields]
    ) -> Clip: ...
    @overload
    def animate(
        self,
        prompt: list[str] | list[Request] | tuple[str | Request, ...],
        on_progress: ProgressCallback | None = None,
        **fields: Unpack[CallFields],
    ) -> list[Clip]: ...
    def animate(
        self, prompt: Any, on_progress: ProgressCallback | None = None, **fields: Any
    ) -> Clip | list[Clip]:
        """A clip of a prompt or Request, or a list of clips of several.

        The clip carries the complete request, its seed included: the same request gives the same frames on
        the same machine. Warns when the model knows no word of the prompt, or when the prompt is too long.

        Args:
            prompt: words, a Request, or a list of them.
            on_progress: called as (stage, done, total) in place of the bar.
            progress: whether a bar is shown; by default only in terminals and notebooks.
            callback_on_step_end: called after each step as in diffusers' pipelines.
            fields: those of Request, which win over those of `prompt`; `num_frames` and `generator` are
                understood as in diffusers. seed, generator and negative_prompt may be lists for a list.
        """
        callback, progress = fields.pop("callback_on_step_end", None), fields.pop("progress", None)
        several = isinstance(prompt, (list, tuple))
        clips = []
        with progress_bar(progress if on_progress is None else False) as bar:
            for asked in requests_of(prompt if several else [prompt], fields):
                request = self.request(asked)
                for hint in self.hints(request):
                    warnings.warn(hint, StillmotionWarning, stacklevel=2)
                latents = self.sample(request, on_progress or bar, callback)
                clips.append(self.decode(latents, on_progress or bar))
        return clips if several else clips[0]

    __call__ = animate

    def request(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> CompleteRequest:
        """The complete request: defaults of the models filled in, a seed drawn; RequestError if wrong."""
        if isinstance(prompt, Request):
            request = prompt.replace(**fields)
        else:
            request = Request(prompt=prompt, **fields)
        complete = request.with_models(self.models).filled(self.defaults)
        check_request(complete, self.pipeline, self.motion)
        return complete

    def hints(self, request: Request) -> list[str]:
        """What the user should know before waiting: doubts about a file, words unknown or not read."""
        found = [*getattr(self.motion, "notes", ()), *self.notes]
        if known := self.card.concepts:
            style = None if request.loras else known.style_hint(request.prompt)  # a LoRA may know it
            found += [known.hint(request.prompt), style]
        found += prompt_notes(self.pipeline, request, self.words)
        return [hint for hint in found if hint]

    def sample(
        self,
        request: Request,
        on_progress: ProgressCallback | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> Latents:
        """Runs the pipeline with motion attached and gives undecoded latents, which can be kept in a file.

        Args:
            request: what to draw.
            on_progress: called as ("sampling", steps done, all steps).
            callback_on_step_end: called after each step as in diffusers' pipelines.
        """
        request = self.request(request)
        latents = draw(
            request,
            self.pipeline,
            None if self.family is None else self.family.schedule,
            self._attachments.awake(self.pipeline, self.motion, self.loras, request),
            words=self.words,
            condition_models=self.condition_models,
            causes=partial(suspects, request, self.pipeline.unet.dtype, bool(self.loras)),
            on_progress=on_progress or no_progress,
            callback=callback_on_step_end,
        )
        return Latents(latents, request, self.files)

    def decode(self, latents: Latents, on_progress: ProgressCallback | None = None) -> Clip:
        """Pixels from latents, a few frames at a time, in the precision of the VAE (`load`: float32)."""
        return latents.decode(self.pipeline.vae, on_progress or no_progress)
