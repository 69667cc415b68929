"""Randomness that a continued run shares with an unbroken one (floor 5)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tempspec.core.noise import fold

__all__ = ["BatchInStep", "BatchSeed"]


class BatchInStep:
    """Which of its optimiser step's batches one is: 0, and more under gradient accumulation.

    The trainer's own number of a batch will not do: it begins anew where a finished run is continued for longer.
    """

    def __init__(self) -> None:
        self._step = self._number = -1

    def __call__(self, step: int) -> int:
        """The number of the coming batch of optimiser step `step`; called once a batch.

        >>> number = BatchInStep()
        >>> [number(step) for step in (0, 0, 1, 2, 2)]
        [0, 1, 0, 0, 1]
        """
        self._number = self._number + 1 if step == self._step else 0
        self._step = step
        return self._number


class BatchSeed(Callback):
    """Seeds torch's global generators before every training batch, from the run's seed and the batch's place alone.

    Dropout, and whatever else of a model draws from them, is then the same in a run that was never stopped and in one
    that was continued; every process draws its own. Nothing needs to be kept in checkpoints.
    """

    def __init__(self) -> None:
        self._seed = 0
        self._number = BatchInStep()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the seed that the run began with (`seed_everything`)."""
        self._seed = torch.initial_seed() % 2**63
        self._number = BatchInStep()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed."""
        step = trainer.global_step
        torch.manual_seed(int(fold(self._seed, step, self._number(step), trainer.global_rank)))
