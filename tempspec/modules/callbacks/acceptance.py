"""The acceptance of whatever language model a LightningModule trains, against a target (floor 5)."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tempspec.modules.callbacks.measuring import MeasuresAcceptance
from tempspec.modules.callbacks.step_clock import StepClock

__all__ = ["AcceptanceCallback"]


class AcceptanceCallback(MeasuresAcceptance, Callback):
    """Measures in any training how much a target would accept of the model that is trained, and logs it.

    Logs `acceptance/T1` and so on, one for each temperature of both models, on held-out text: after every validation,
    or after every so many optimiser steps; in any case at the end of training. `table()` has all pairs of temperatures
    with their intervals. The model has to be whole on every process, as under DDP. Every process measures all of the
    text. `MeasuresAcceptance` says what the options mean.
    """

    _steps: StepClock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._steps, self._measured = StepClock(trainer.global_step), None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure, where a step is due."""
        step = trainer.global_step
        if self._steps.stepped(step) and self._due(step):
            self._log(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, where no steps are named; not in the trial before training."""
        if self.every_n_steps is None and not trainer.sanity_checking:
            self._log(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step, unless that was done; here Lightning takes metrics for loggers alone."""
        if self._measured != trainer.global_step:
            found = self._measure(pl_module, trainer.global_step)
            for logger in trainer.loggers:
                logger.log_metrics(found, trainer.global_step)

    def _log(self, pl_module: LightningModule) -> None:
        for name, value in self._measure(pl_module, pl_module.global_step).items():
            pl_module.log(name, value, rank_zero_only=True)
