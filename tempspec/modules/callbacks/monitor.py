"""The curves that every training wants (floor 5)."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tempspec.modules.callbacks.step_clock import StepClock

__all__ = ["TrainingMonitor"]


class TrainingMonitor(Callback):
    """Logs `train/grad_norm` (before clipping), `train/lr`, `train/tokens_per_second` and `train/padding`.

    Tokens are real ones (`attention_mask`), of all ranks; time spent in validation does not count. Padding is the share
    of the other positions, of this rank. A module that trains on other text than the batch's returns the number of its
    `tokens` and `positions` beside its loss.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._since = 0.0
        self._paused_at = 0.0
        self._tokens: torch.Tensor | int = 0
        self._positions = 0
        self._steps = StepClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._since, self._tokens, self._positions = self.clock(), 0, 0
        self._steps = StepClock(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused_at = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock run again."""
        self._since += self.clock() - self._paused_at

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the gradient's norm and the learning rate of the step."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # As a tensor of the host: Lightning would send a number to the device, and wait until it is there.
        pl_module.log("train/lr", torch.as_tensor(optimizer.param_groups[0]["lr"], dtype=torch.float32))
        norm = torch.nn.utils.get_total_norm(gradients)
        pl_module.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log the speed after a step."""
        self._tokens = self._tokens + (outputs["tokens"] if "tokens" in outputs else batch["attention_mask"].sum())
        self._positions += outputs["positions"] if "positions" in outputs else batch["attention_mask"].numel()
        due = trainer.global_step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]
        if self._steps.stepped(trainer.global_step) and due:
            now = self.clock()
            tokens = float(self._tokens)
            pl_module.log("train/tokens_per_second", tokens / max(now - self._since, 1e-9) * trainer.world_size)
            pl_module.log("train/padding", 1 - tokens / self._positions)
            self._since, self._tokens, self._positions = now, 0, 0
