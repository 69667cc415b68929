"""The one checkpoint that a run can always be continued from (floor 5)."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from tempspec.errors import UserError
from tempspec.modules.callbacks.step_clock import StepClock
from tempspec.modules.processes import raised_by_all

__all__ = ["LastCheckpoint"]

_LOOKS = 20
"""How often the processes ask rank 0's clock in the time between two checkpoints."""


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: every so many seconds, after each validation, at the end, and when anything stops the run.

    Unlike `ModelCheckpoint(save_last=True, save_on_exception=True)` it writes one file, always under one name, never
    replaces it by a run that failed before its first step, nor by weights in the middle of a step, and moves it to its
    place in one step: Lightning's own writing passes through the system's folder for temporary files, and where that
    is another disk a crash leaves half a checkpoint. Under gradient accumulation it waits for the optimiser step: no
    checkpoint keeps gradients.

    Saving is done by all processes together. An exception of one alone is therefore not saved: the others are in the
    middle of a step. The run goes back to the checkpoint before.

    Args:
        folder: where the file is.
        every: seconds of work that a crash of the machine may cost; 0 saves after validations and at the end alone.
        clock: seconds that only grow.

    Raises:
        UserError: every is negative.
    """

    def __init__(self, folder: str | Path, every: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        if every < 0:
            raise UserError(f"checkpoint_every must be seconds, 0 or more, got {every:g}")
        self.path = Path(folder) / "last.ckpt"
        self.every = every
        self.clock = clock
        self._steps_to_look = self._looked_at_step = 0
        self._looked_at = 0.0
        self._saved_step: int | None = None
        self._saved_at = 0.0
        self._in_step = False
        self._steps, self._batches = StepClock(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to lose."""
        self._saved_step = trainer.global_step
        self._saved_at = self._looked_at = self.clock()
        self._steps, self._batches = StepClock(trainer.global_step), _batches(trainer)
        self._steps_to_look, self._looked_at_step = 1, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """From here to the batch's end the weights may be half updated."""
        self._in_step = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save if the time has come."""
        self._in_step = False
        if not self._steps.stepped(trainer.global_step):
            return
        self._batches = _batches(trainer)
        if self.every and self._due(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation inside fit."""
        if not trainer.sanity_checking and self._holds_all(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what there is.

        Not where one process of several fails alone; not in a second Ctrl-C, which may come at any point of a step; not
        after some of the batches of an accumulated step; and not in the middle of a validation, which a run that is
        continued from there would leave out: it resumes from the checkpoint before.
        """
        alone = trainer.world_size > 1 and not raised_by_all(exception)
        torn = self._in_step and isinstance(exception, KeyboardInterrupt)
        if not alone and not torn and not trainer.validating and self._holds_all(trainer):
            self._save(trainer)

    def _due(self, trainer: Trainer) -> bool:
        """Whether the time has come, by rank 0's clock.

        The processes look at it together, and not at every step, which would cost a short one a tenth of its time:
        rank 0 tells with each look after how many steps the next one is.
        """
        if trainer.world_size == 1:
            return self.clock() - self._saved_at > self.every
        self._steps_to_look -= 1
        if self._steps_to_look > 0:
            return False
        now, steps = self.clock(), self._steps.step - self._looked_at_step
        seconds = max(now - self._looked_at, 1e-6) / max(steps, 1)
        after = max(1, min(int(self.every / _LOOKS / seconds), 1000))
        asked = [int(now - self._saved_at > self.every), after]
        told = torch.tensor(asked, dtype=torch.int64, device=trainer.strategy.root_device)
        torch.distributed.broadcast(told, src=0)
        due, self._steps_to_look = told.tolist()
        self._looked_at, self._looked_at_step = now, self._steps.step
        return bool(due)

    def _holds_all(self, trainer: Trainer) -> bool:
        """Whether the weights have learned from every batch that is done: none waits for its step."""
        return trainer.global_step != self._steps.step or _batches(trainer) == self._batches

    def _save(self, trainer: Trainer) -> None:
        """Save, unless nothing was done since the last time."""
        trying = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._saved_step is not None and trainer.global_step != self._saved_step and not trying:
            fresh = self.path.with_name(self.path.name + ".tmp")
            trainer.save_checkpoint(fresh)
            if trainer.is_global_zero:
                os.replace(fresh, self.path)
            trainer.strategy.barrier("last checkpoint")
            self._saved_step = trainer.global_step
            self._saved_at = self.clock()


def _batches(trainer: Trainer) -> int:
    """How many batches have been trained on."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
