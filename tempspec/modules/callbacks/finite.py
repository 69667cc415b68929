"""A stop when the loss is no longer a number (floor 5)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tempspec.errors import UserError
from tempspec.modules.processes import RaisedByAll, of_all

__all__ = ["FiniteLoss", "NotFinite"]

_NAMED = 16
"""Rows that a message names at most."""


class NotFinite(RaisedByAll, UserError):
    """The loss is no number, on some process; all of them raise it."""


class FiniteLoss(Callback):
    """Ends training, on all ranks, before a NaN or infinite loss reaches the weights.

    The checkpoint that is saved on the way out is therefore still good. The message names the batch's rows by their
    keys, of the first process whose loss is broken.
    """

    def __init__(self) -> None:
        self._keys: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which rows the coming loss is of."""
        self._keys = batch["key"].flatten().tolist()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            NotFinite: it is not finite here or on another rank.
        """
        broken = not bool(torch.isfinite(loss.detach()).all())
        if not trainer.strategy.reduce_boolean_decision(broken, all=False):
            return
        found = (loss.item(), self._keys) if broken else None
        value, keys = next(one for one in of_all(found) if one is not None)
        rest = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
        raise NotFinite(
            f"the loss is {value} at step {trainer.global_step} (rows with keys {', '.join(map(str, keys[:_NAMED]))}"
            f"{rest}): lower the learning rate, clip gradients (trainer.gradient_clip_val: 1.0), or train in "
            "bf16-mixed, not 16-mixed"
        )
