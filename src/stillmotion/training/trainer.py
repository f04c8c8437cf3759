"""`Trainer`: the engine of `stillmotion train` for a dataset and a module of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from stillmotion.checkpoints.base_model import load_base
from stillmotion.errors import TrainingError
from stillmotion.training.config.trainer import TrainerConfig
from stillmotion.training.engine.logger import Step
from stillmotion.training.engine.loop import Outcome, run
from stillmotion.training.targets.own import Dataset, LossFunction, OwnTarget


class Trainer:
    """Trains a module on a dataset, with the checkpoints, exact resume, EMA, samples and processes of
    `stillmotion train`.

    The pipeline is frozen and goes to the device and precision of the run; the module stays yours.

    Args:
        pipeline: a Stable Diffusion or SDXL pipeline, or the name, folder or file of one.
        model: the module to train, or a function that makes it from the UNet. A `MotionModel` is attached to
            the UNet for the run and taken off again; any other module is expected to be part of the UNet or
            to act on it already, by hooks of its own or as an `Attachment`. All its parameters with
            requires_grad train.
        dataset: a torch Dataset, a list or anything with a length. An item is a pair (content, caption).
            Content is frames (uint8, (frames, height, width, 3) or (frames, 3, height, width); PIL images; a
            Clip) or scaled latents (float, (frames, channels, height, width)); frames go through the VAE at
            every use. A caption is text, or several texts of which one is drawn.
        config: settings; `TrainerConfig(output="runs/mine", max_train_steps=1000)`.
        loss: from a prediction (`output` and `target` (b, f, c, h, w), `timesteps` (b,)) to a scalar;
            default: the squared error, weighted as config.snr_gamma says.
        callbacks: each is called with every finished step (step, loss, learning_rate, grad_norm). An
            exception in one ends the run; the last checkpoint stays.

    Random choices of the dataset itself come back after a restart if they use torch's own generator, which is
    seeded for every step.
    """

    def __init__(
        self,
        pipeline: Any,
        model: nn.Module | Callable[[Any], nn.Module],
        dataset: Dataset,
        config: TrainerConfig,
        *,
        loss: LossFunction | None = None,
        callbacks: Sequence[Callable[[Step], None]] = (),
    ) -> None:
        for needed in ("__len__", "__getitem__"):
            if not hasattr(dataset, needed):
                raise TrainingError(
                    f"The dataset ({type(dataset).__name__}) has no {needed}: give a list or a torch Dataset "
                    "with a length, so that every epoch takes each item once."
                )
        if not len(dataset):
            raise TrainingError(f"The dataset ({type(dataset).__name__}) is empty.")
        if isinstance(pipeline, (str, Path)):
            config = config.model_copy(update={"base": str(pipeline)})
            pipeline = load_base(pipeline)
        self.pipeline, self.dataset, self.config = pipeline, dataset, config
        self.model = model if isinstance(model, nn.Module) else model(pipeline.unet)
        self.loss, self.callbacks = loss, tuple(callbacks)

    def train(self) -> Outcome:
        """Trains to the last step, or goes on with the run that is in config.output; Ctrl-C stops it cleanly.

        The module holds the weights of the last step, the artifact in the output (motion/ or
        model.safetensors) their running mean if config.ema_decay is not 0.
        """
        made: list[OwnTarget] = []
        scheduler = self.pipeline.scheduler

        def make(config: TrainerConfig, accelerator: Accelerator, log: Callable[[str], None]) -> OwnTarget:
            parts = {"pipeline": self.pipeline, "model": self.model, "dataset": self.dataset}
            made.append(OwnTarget(config, accelerator, log, **parts, loss=self.loss))
            return made[0]

        try:
            return run(self.config, make, self._call)
        finally:
            self.pipeline.scheduler = scheduler
            for target in made:
                target.detach()

    def _call(self, step: Step) -> None:
        for callback in self.callbacks:
            callback(step)
