"""A stop when the loss is no longer a number (floor 5)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tempspec.errors import UserError

__all__ = ["FiniteLoss"]


class FiniteLoss(Callback):
    """Ends training, on all ranks, before a NaN or infinite loss reaches the weights.

    The checkpoint that is saved on the way out is therefore still good.
    """

    def __init__(self) -> None:
        self._keys: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which rows the coming loss is of."""
        self._keys = batch["key"][:4].tolist()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            UserError: it is not finite here or on another rank.
        """
        broken = not bool(torch.isfinite(loss.detach()).all())
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce_boolean_decision(broken, all=False)
        if broken:
            keys = ", ".join(map(str, self._keys))
            raise UserError(
                f"the loss is {loss.item()} at step {trainer.global_step} (first rows' keys {keys}): lower the "
                "learning rate, clip gradients (trainer.gradient_clip_val: 1.0), or train in bf16-mixed, not 16-mixed"
            )
