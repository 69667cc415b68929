"""Randomness that a continued run shares with an unbroken one (floor 5)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tempspec.core.noise import fold
from tempspec.modules.callbacks.step_clock import StepClock

__all__ = ["BatchSeed"]


class BatchSeed(Callback):
    """Seeds torch's global generators before every training batch, from the run's seed and the batch's place alone.

    Dropout, and whatever else of a model draws from them, is then the same in a run that was never stopped and in one
    that was continued; every process draws its own. Nothing needs to be kept in checkpoints.
    """

    def __init__(self) -> None:
        self._seed = 0
        self._clock = StepClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the seed that the run began with (`seed_everything`)."""
        self._seed = torch.initial_seed() % 2**63
        self._clock = StepClock()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed."""
        step = trainer.global_step
        torch.manual_seed(int(fold(self._seed, step, self._clock.number(step), trainer.global_rank)))
