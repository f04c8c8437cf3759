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
from torch import Tensor
from typing_extensions import Self, Unpack

from stillmotion.diffusion.noise import video_noise
from stillmotion.diffusion.schedule import NoiseSchedule
from stillmotion.diffusion.schedulers import check_steps, make_scheduler
from stillmotion.diffusion.text import Conditioner
from stillmotion.diffusion.vae import pixels_per_latent
from stillmotion.errors import RequestError, StillmotionWarning
from stillmotion.request import Request
from stillmotion.request.model_card import ModelCard
from stillmotion.request.request import CompleteRequest
from stillmotion.request.sections import DTYPES, Models
from stillmotion.request.typed import RequestFields
from stillmotion.runtime.precision import as_device
from stillmotion.sampling.calls import CallFields, StepCallback, requests_of
from stillmotion.sampling.checks import check_request, suspects
from stillmotion.sampling.conditions.base import Run, attached, prepare
from stillmotion.sampling.defaults import family_defaults
from stillmotion.sampling.latents import Latents
from stillmotion.sampling.loading import LoraWeights, as_dtype, load_models
from stillmotion.sampling.notes import prompt_notes
from stillmotion.sampling.progress import ProgressCallback, no_progress, progress_bar
from stillmotion.sampling.sample import sample
from stillmotion.sampling.sleeping import SleepingAttachments
from stillmotion.video import Clip

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

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

        `motion="none"` gives a base for stills. `loras` and `motion_loras` map files to weights, which are
        numbers, text or mappings as in `LayerWeights`; `embeddings` maps files to the words they stand for
        ("" for their own); `vae` is used instead of the base's. `dtype` and `device` default to what this
        machine does well. WeightsError in one sentence if files are damaged or do not fit.
        """
        loaded = load_models(base, motion, loras, dtype, device, motion_loras, vae, embeddings, **others)
        return cls(
            loaded.pipeline,
            loaded.motion,
            loaded.card,
            loaded.models,
            loaded.loras,
            loaded.notes,
            loaded.words,
            loaded.files,
        )

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.pipeline.unet.device

    def to(self, place: str | int | torch.device | torch.dtype) -> Self:
        """Moves everything to a device, or to a precision (all but the VAE); returns itself.

        RequestError for a device that this machine does not have.
        """
        if isinstance(place, torch.dtype) or place in DTYPES or place in DTYPES.values():
            dtype = as_dtype(place)
            parts = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
            for part in parts:
                part.to(torch.float32 if part is self.pipeline.vae else dtype)
            self.models = self.models.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
        else:
            dtype = None
            self.pipeline.to(as_device(place))
        if self.motion is not None:
            self.motion.to(self.device, dtype)
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
            found += [known.hint(request.prompt), known.style_hint(request.prompt)]
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
        generator = torch.Generator("cpu").manual_seed(request.seed)
        steering = prepare(Run(self.pipeline, request, self.condition_models))
        noise = self._noise(request, generator)
        if steering.initial_latents is not None:
            noise = steering.initial_latents
        scheduler = self._scheduler(request)
        steps, guidance = request.num_inference_steps, request.guidance_scale
        check_steps(request.scheduler, scheduler, steps)
        told = partial(on_progress or no_progress, "sampling")
        told(0, steps)
        with (
            self._attachments.awake(self.pipeline, self.motion, self.loras, request),
            attached(steering.attachments, self.pipeline, request.frames),
        ):
            latents = sample(
                self.pipeline,
                Conditioner(self.pipeline, words=self.words).pipeline_arguments(
                    request.prompt, request.negative_prompt, guidance > 1, request.clip_skip
                ),
                noise,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
                scheduler=scheduler,
                on_step=told,
                causes=partial(suspects, request, self.pipeline.unet.dtype, bool(self.loras)),
                arguments=steering.pipeline_arguments,
                callback=callback_on_step_end,
            )
        return Latents(latents, request, self.files)

    def decode(self, latents: Latents, on_progress: ProgressCallback | None = None) -> Clip:
        """Pixels from latents, a few frames at a time, in the precision of the VAE (`load`: float32)."""
        return latents.decode(self.pipeline.vae, on_progress or no_progress)

    def _noise(self, request: CompleteRequest, generator: torch.Generator) -> Tensor:
        factor = pixels_per_latent(self.pipeline.vae)
        if request.width % factor or request.height % factor:
            raise RequestError(
                f"{request.width}x{request.height} pixels cannot be drawn: both must be multiples of "
                f"{factor}."
            )
        size = (request.frames, request.height, request.width)
        return video_noise(self.pipeline.vae, size, request.noise_alpha, generator)

    def _scheduler(self, request: CompleteRequest) -> SchedulerMixin:
        schedule = NoiseSchedule.from_config(self.pipeline.scheduler.config)
        moves = request.frames > 1 or request.single_frame_motion == "run"
        if self.family is not None and moves:
            schedule = self.family.schedule.over_base(schedule)
        return make_scheduler(request.scheduler, schedule)
