"""Optimiser and learning-rate schedule of a LightningModule, from what a configuration names (floor 5)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

__all__ = ["WarmupCosine", "default_optimizer", "optimizers"]


class WarmupCosine(LRScheduler):
    """A linear warm-up, then half a cosine down to a fraction of the peak (Loshchilov and Hutter 2017).

    A run whose length nobody knows (`max_time` alone) stays at the peak: a cosine of infinite length is flat.

    Args:
        optimizer: the optimiser, whose own learning rate is the peak.
        warmup: steps up to the peak.
        floor: the last learning rate as a fraction of the peak.
        total_steps: the optimiser steps of the run; None takes the Trainer's own count.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = WarmupCosine(optimizer, warmup=2, floor=0.0, total_steps=6)
    >>> [round(schedule.factor(step), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def __init__(
        self, optimizer: Optimizer, warmup: int = 100, floor: float = 0.1, total_steps: int | None = None
    ) -> None:
        if warmup < 0:
            raise ValueError(f"warmup must be 0 steps or more, got {warmup}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be a fraction of the peak, 0 to 1, got {floor}")
        self.warmup = warmup
        self.floor = floor
        self.total_steps: float | None = total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The fraction of the peak that the optimiser step number `step`, from 0, is taken with."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        total = math.inf if self.total_steps is None else self.total_steps
        progress = min(1.0, (step - self.warmup) / max(1, total - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of every parameter group, for the coming step."""
        return [peak * self.factor(self.last_epoch) for peak in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step count; the length stays this run's own, so that a run can be continued for longer."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "total_steps"})


def default_optimizer(parameters: ParamsT) -> Optimizer:
    """AdamW with the usual constants of small language models (GPT-3's betas and decay)."""
    return AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def optimizers(
    module: LightningModule,
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
    undecayed: Sequence[nn.Parameter] = (),
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns.

    Args:
        module: the module, attached to its Trainer.
        parameters: what is trained.
        optimizer: parameters -> optimiser; None is `default_optimizer`.
        lr_scheduler: optimiser -> schedule, stepped every optimiser step (`ReduceLROnPlateau`: after every epoch);
            None is `WarmupCosine`.
        undecayed: what is trained besides, without weight decay, as 0 is no better a value for it than another.
    """
    decayed = list(parameters)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": list(undecayed), "weight_decay": 0.0}]
    chosen = (optimizer or default_optimizer)(groups if undecayed else decayed)
    schedule = (lr_scheduler or WarmupCosine)(chosen)
    if isinstance(schedule, ReduceLROnPlateau):
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}
    if isinstance(schedule, WarmupCosine) and schedule.total_steps is None:
        schedule.total_steps = module.trainer.estimated_stepping_batches
    return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
