"""The one training loop. Knows weights, steps, checkpoints, processes; what a step computes is the target's.

    loss per pass -> fp32 gradients, summed over passes, processes -> clip -> optimizer -> EMA -> checkpoint

Everything that a step does is a function of the checkpoint before it and of the settings: a run that was
killed at any moment ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from stillmotion.atomic import write_text
from stillmotion.errors import OutputError, TrainingError
from stillmotion.runtime.precision import best_device, training_dtype
from stillmotion.training.config import TrainConfig, as_yaml, plain_fields
from stillmotion.training.engine import checkpoint
from stillmotion.training.engine.attention import trainable_attention
from stillmotion.training.engine.diagnostics import (
    Diagnostics,
    rate_notice,
    refuse_nonfinite,
    refuse_nonfinite_weights,
)
from stillmotion.training.engine.flat_params import FlatParameters
from stillmotion.training.engine.logger import Logger, Step, duration, read_losses
from stillmotion.training.engine.loss_plot import plot_losses
from stillmotion.training.engine.lr_schedule import learning_rate
from stillmotion.training.engine.optimizers import make_optimizer
from stillmotion.training.engine.rng import DRAWS, sample_rngs, seed_model
from stillmotion.training.engine.run_folder import RunFolder, claim
from stillmotion.training.engine.sheet_paths import is_whole, sheet_path
from stillmotion.training.engine.stop import Stop
from stillmotion.training.engine.target import Target

MUTABLE_SETTINGS = {
    "output",
    "max_minutes",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "log_steps",
    "tensorboard",
}
"""settings that may change between two starts without changing what is learnt"""
CHECK_EVERY = 10


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `finished` is false when it was stopped before its last step."""

    output: Path
    step: int
    loss: float | None
    finished: bool
    signal: int | None = None
    """number of the signal that stopped it, if one did"""


def run(
    config: TrainConfig,
    make: Callable[[Any, Accelerator, Callable[[str], None]], Target],
    on_step: Callable[[Step], None] | None = None,
) -> Outcome:
    """Trains what `make` gives to the last step, the time limit or a signal, from where `output` stands."""
    accelerator = Accelerator(
        cpu=torch.device(config.device or best_device()).type == "cpu",  # else torchrun on CPUs is ignored
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=config.output,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],  # the others wait for samples
    )
    stop = Stop(config.max_minutes, accelerator.is_main_process)
    with (
        claim(config.output) if accelerator.is_main_process else nullcontext() as folder,
        Logger(
            config.output, accelerator, config.max_train_steps, config.log_steps, config.tensorboard
        ) as logger,
    ):
        notice = rate_notice(config.learning_rate, config.usual_rate)
        if notice is not None:
            logger.log(notice)
        target = make(config, accelerator, logger.log)  # Ctrl-C may end this at once: what is encoded stays
        with stop:
            return Run(config, accelerator, target, logger, stop, on_step, folder).go()


class Run:
    """State of a run: `flat` weights, `ema`, optimizer and the number of steps done."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        target: Target,
        logger: Logger,
        stop: Stop,
        on_step: Callable[[Step], None] | None,
        folder: RunFolder | None = None,
    ) -> None:
        self.folder = folder
        self.config, self.accelerator, self.target = config, accelerator, target
        self.logger, self.stop, self.on_step = logger, stop, on_step
        self.settings = plain_fields(config)
        self.flat = FlatParameters(target.parameters(), training_dtype(config.precision, accelerator.device))
        self.ema = self.flat.weights.clone() if config.ema_decay else None
        self.optimizer = make_optimizer(self.flat, config)
        self.diagnostics = Diagnostics(config.usual_rate)
        self.done = 0
        self.saved_at = time.monotonic()
        self.last: Path | None = None
        self.loss: float | None = None

    def go(self) -> Outcome:
        """Trains to the end; TrainingError where the disk refuses, after a try to save what is trained."""
        try:
            return self._go()
        except (OSError, SafetensorError, OutputError) as error:
            what = str(error).rstrip(".")
            raise TrainingError(
                f"After step {self.done} the run could not go on: {what}. {self._rescue()} Free space or "
                "bring back what is missing; the same command goes on from there."
            ) from error

    def _rescue(self) -> str:
        """Saves what is trained, if it is not yet and the disk lets us; where it is, in words."""
        if self.done and not (self.last and self.last.exists() and self.last.name.endswith(str(self.done))):
            with suppress(OSError, SafetensorError, OutputError):
                self._save()
        if self.last is None or not self.last.exists():
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.last}."

    def _go(self) -> Outcome:
        config = self.config
        self._restore()
        self.logger.begin(self.done, self.settings)
        if self.accelerator.is_main_process:
            write_text(config.output / "config.yaml", as_yaml(config))
        if self.done:
            self._complete()
        else:
            self._sample()  # what the base draws before anything is learnt
        stopping = False
        while self.done < config.max_train_steps and not stopping:
            row, stopping = self._step()
            self.logger.step(row)
            if self.on_step is not None:
                self.on_step(row)
            due = self.done % config.checkpoint_steps == 0 or self.done == config.max_train_steps
            if due or stopping or time.monotonic() - self.saved_at > 60 * config.checkpoint_minutes:
                self._save()
            if not stopping:  # a sheet that is left out is drawn when the run goes on
                self._sample()
        finished = self.done >= config.max_train_steps
        self.accelerator.wait_for_everyone()
        self._say_end(finished)
        return Outcome(config.output, self.done, self.loss, finished, None if finished else self.stop.signal)

    def _step(self) -> tuple[Step, bool]:
        config = self.config
        rate = learning_rate(
            self.done,
            config.learning_rate,
            config.lr_schedule,
            config.lr_warmup_steps,
            config.max_train_steps,
            config.lr_end,
        )
        loss, spread, stopping = self._gradients()
        norm = float(self.flat.grad.norm())
        refuse_nonfinite(loss, norm, self.done + 1, self.last)
        if config.max_grad_norm and norm > config.max_grad_norm:
            self.flat.grad.mul_(config.max_grad_norm / norm)
        before = self.flat.weights.clone() if self.done % CHECK_EVERY == 0 else None
        self.optimizer.step(rate)
        self.flat.grad.zero_()
        self.flat.copy_to_model()
        if self.ema is not None:
            decay = min(config.ema_decay, (1 + self.done) / (10 + self.done))
            self.ema.lerp_(self.flat.weights, 1 - decay)
        self.done += 1
        self.loss = loss
        if before is not None:
            moved = float((self.flat.weights - before).norm() / before.norm().clamp(min=1e-12))
            for sentence in self.diagnostics.update(loss, spread, moved, rate):
                self.logger.log(sentence)
        return Step(self.done, loss, rate, norm), stopping

    def _gradients(self) -> tuple[float, float, bool]:
        """Mean gradient of the global batch into `flat.grad`; gives mean loss, spread, whether to stop."""
        config, processes = self.config, self.accelerator.num_processes
        passes = config.gradient_accumulation_steps
        told = torch.zeros(3, device=self.flat.weights.device)
        for index in range(passes):
            part = index * processes + self.accelerator.process_index
            seed_model(config.seed, self.done, part)
            with trainable_attention(self.accelerator.device):
                loss = self.target.loss(
                    sample_rngs(config.seed, self.done, part, config.batch_size, passes * processes)
                )
                loss.value.backward()
            self.flat.accumulate_grads(1 / passes)
            told[:2] += torch.stack([loss.value.detach().float(), loss.spread.detach().float()]) / passes
        told[2] = float(self.stop.requested)
        if processes > 1:
            self.flat.grad = self.accelerator.reduce(self.flat.grad, "mean")
            told = self.accelerator.reduce(told, "mean")
        loss, spread, stopping = told.tolist()
        return loss, spread, stopping > 0

    def _sample(self) -> None:
        """Samples with the weights that would be saved, on the main process."""
        every = getattr(self.config, "validation_steps", 0)
        if not every or self.done % every or not self.accelerator.is_main_process:
            return
        sheet = None
        with self.logger.aside(), self.stop.interruptible():
            try:
                self.flat.copy_to_model(self.ema)
                sheet = self.target.samples(self.config.output / "samples", self.done)
            finally:
                self.flat.copy_to_model()
        if sheet is not None:
            self.logger.log(f"step {self.done}: samples in {sheet}")
            with Image.open(sheet) as image:
                self.logger.image("samples", np.asarray(image.convert("RGB")), self.done)

    def _complete(self) -> None:
        """Makes what belongs to the checkpoint again: after a kill it may be missing, old or damaged."""
        if self.accelerator.is_main_process:
            self._save_product()
            if not is_whole(sheet_path(self.config.output / "samples", self.done)):
                self._sample()

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        refuse_nonfinite_weights(self.flat.weights, self.done, self.last)
        if not self.accelerator.is_main_process:
            return
        if self.folder is not None:
            self.folder.check_ours()
        self.logger.flush()
        tensors: dict[str, Tensor] = {"weights": self.flat.weights.detach(), **self.optimizer.state()}
        if self.ema is not None:
            tensors["ema"] = self.ema
        facts = {
            "settings": {
                name: value for name, value in self.settings.items() if name not in MUTABLE_SETTINGS
            },
            "processes": self.accelerator.num_processes,
            "data": self.target.data_key(),
            "draws": DRAWS,
            "shapes": self.flat.shapes,
            "torch": torch.__version__,
        }
        self.last = checkpoint.write(
            self.config.output, self.done, tensors, facts, self.config.keep_checkpoints
        )
        self._save_product()

    def _save_product(self) -> None:
        self.target.save(self.config.output, self.flat.named(self.ema), self.done)
        plot_losses(read_losses(self.logger.file), self.config.output / "loss.png")

    def _restore(self) -> None:
        saved = checkpoint.read_newest(self.config.output, self.logger.log)
        if saved is None:
            return
        checkpoint.check_shapes(saved, self.flat.shapes)
        settings = {name: value for name, value in self.settings.items() if name not in MUTABLE_SETTINGS}
        for sentence in checkpoint.changes(saved, settings):
            self.logger.log(f"Note: {sentence}.")
        if saved.facts.get("data") != self.target.data_key():
            self.logger.log(
                "Note: the training data are not those of the last start: their order differs from here on."
            )
        if saved.facts.get("draws") != DRAWS:
            self.logger.log(
                "Note: the run was begun by an older version, which drew its samples otherwise: timesteps, "
                "captions and frames differ from here on."
            )
        if saved.facts.get("processes") != self.accelerator.num_processes:
            self.logger.log(
                f"Note: {self.accelerator.num_processes} processes, {saved.facts.get('processes')} before."
            )
        self.flat.weights.copy_(saved.tensors["weights"])
        self.optimizer.load(saved.tensors)
        if self.ema is not None:
            self.ema.copy_(saved.tensors.get("ema", saved.tensors["weights"]))
        self.flat.copy_to_model()
        self.done, self.last = saved.step, saved.folder
        self.logger.log(f"Going on after step {self.done} of {saved.folder}.")

    def _say_end(self, finished: bool) -> None:
        end = "Finished" if finished else "Stopped; the same command goes on. Now"
        took = duration(time.monotonic() - self.logger.began)
        self.logger.log(
            f"{end} at step {self.done} of {self.config.max_train_steps} ({took}); "
            f"weights: {self.config.output / self.target.artifact}"
        )
