"""Optimiser and learning-rate schedule of a LightningModule, from what a configuration names (floor 5)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

__all__ = ["CLIP", "WarmupCosine", "default_optimizer", "fine_tuning", "optimizers"]

_RATE, _FINE_RATE = 1e-3, 1e-4
"""Peak learning rates: of random weights of a few million numbers, and of weights that were trained before.

The second is what is usual for fine-tuning all of a model of 0.1 to 3 billion parameters; the first destroys one within
its warm-up.
"""
_FINE_WARMUP = 0.05
"""Share of the steps of a fine-tuning up to its peak: short runs are common."""
CLIP = 1.0
"""The norm that gradients of a model that was trained before are clipped at, unless the Trainer names another."""


class WarmupCosine(LRScheduler):
    """A linear warm-up, then half a cosine down to a fraction of the peak (Loshchilov and Hutter 2017).

    A run whose length is not known (only `max_time` is set) stays at the peak: a cosine of infinite length is flat.

    Args:
        optimizer: the optimiser, whose own learning rate is the peak.
        warmup: steps up to the peak; below 1 their share of the run's steps (in a run without an end, of 1,000).
        floor: the last learning rate as a fraction of the peak.
        total_steps: the optimiser steps of the run; None takes the Trainer's own count.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = WarmupCosine(optimizer, warmup=2, floor=0.0, total_steps=6)
    >>> [round(schedule.factor(step), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 100, floor: float = 0.1, total_steps: int | None = None
    ) -> None:
        if warmup < 0 or (warmup > 1 and warmup % 1):
            raise ValueError(f"warmup must be a number of steps, or a share of them below 1, got {warmup}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be a fraction of the peak, 0 to 1, got {floor}")
        self.warmup = warmup
        self.floor = floor
        self.total_steps: float | None = total_steps
        super().__init__(optimizer)

    def take(self, total_steps: float) -> None:
        """Take the run's length, and with it the rate of the first step, which was set without it.

        Args:
            total_steps: the optimiser steps of the run, possibly infinite.

        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WarmupCosine(optimizer, warmup=0.05)
        >>> before = optimizer.param_groups[0]["lr"]
        >>> schedule.take(40)
        >>> before, optimizer.param_groups[0]["lr"]
        (0.02, 0.5)
        """
        self.total_steps = total_steps
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = self.get_lr()

    def factor(self, step: int) -> float:
        """The fraction of the peak that the optimiser step number `step`, from 0, is taken with."""
        total = math.inf if self.total_steps is None else self.total_steps
        warmup = self.warmup
        if 0 < warmup < 1:
            warmup = math.ceil(warmup * (total if total < math.inf else 1000))
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of every parameter group, for the coming step."""
        return [peak * self.factor(self.last_epoch) for peak in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step count; the length stays this run's own, so that a run can be continued for longer."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "total_steps"})


def default_optimizer(parameters: ParamsT, pretrained: bool = False) -> Optimizer:
    """AdamW with the usual constants of language models (GPT-3's betas and decay).

    Args:
        parameters: what is trained.
        pretrained: whether it was trained before.
    """
    groups: list[Any] = list(parameters)
    rate = _FINE_RATE if pretrained else _RATE
    return AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=all(map(_fusible, _tensors(groups))))


def _tensors(groups: Iterable[Any]) -> list[Tensor]:
    """The parameters in a list of them, of named ones or of groups."""
    found = [one["params"] if isinstance(one, dict) else [one] for one in groups]
    return [one[1] if isinstance(one, tuple) else one for group in found for one in group]


def _fusible(parameter: Tensor) -> bool:
    """Whether torch updates a parameter in one pass: whole ones, on a GPU or CPU."""
    whole = not isinstance(parameter, DTensor)
    return whole and parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point()


def optimizers(
    module: LightningModule,
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
    undecayed: Sequence[nn.Parameter] = (),
    *,
    pretrained: bool,
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns.

    The default optimiser lets matrices decay alone: norms and biases are near a good value, which is not 0. One that is
    named is taken as torch means it: its weight decay is of all parameters.

    Args:
        module: the module, attached to its Trainer.
        parameters: what is trained.
        optimizer: parameters -> optimiser; None is `default_optimizer`.
        lr_scheduler: optimiser -> schedule, stepped every optimiser step (`ReduceLROnPlateau`: after every epoch);
            None is `WarmupCosine`, with a share of the steps to warm up where the weights were trained before.
        undecayed: what is trained besides, without weight decay, as 0 is no better a value for it than another.
        pretrained: whether the weights were trained before.
    """
    trained, learned = list(parameters), list(undecayed)
    # The same groups for both, so that a run can be continued with another optimiser's options.
    matrices: dict[str, Any] = {"params": [one for one in trained if one.ndim >= 2]}
    vectors: dict[str, Any] = {"params": [one for one in trained if one.ndim < 2]}
    besides: dict[str, Any] = {"params": learned, "weight_decay": 0.0}
    if optimizer is None:
        groups = [matrices, vectors | {"weight_decay": 0.0}, besides | {"lr": _RATE}]
        chosen = default_optimizer([group for group in groups if group["params"]], pretrained)
    else:
        chosen = optimizer([group for group in (matrices, vectors, besides) if group["params"]])
    # Lightning would refuse to clip gradients of one that says it divides them itself, as fused ones do.
    chosen._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if lr_scheduler is None:
        schedule: Any = WarmupCosine(chosen, warmup=_FINE_WARMUP) if pretrained else WarmupCosine(chosen)
    else:
        schedule = lr_scheduler(chosen)
    if isinstance(schedule, ReduceLROnPlateau):
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}
    if isinstance(schedule, WarmupCosine) and schedule.total_steps is None:
        schedule.take(module.trainer.estimated_stepping_batches)
    return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fine_tuning(named_optimizer: bool, named_schedule: bool, clip: float | None) -> str | None:
    """One line on the defaults that weights which were trained before are trained with; None where all are named.

    Args:
        named_optimizer: whether the configuration names one.
        named_schedule: whether it names a learning-rate schedule.
        clip: `trainer.gradient_clip_val`.

    >>> fine_tuning(True, True, None)
    'fine-tuning: gradients clipped at 1; for another set trainer.gradient_clip_val'
    """
    parts = []
    if not named_optimizer:
        parts.append((f"AdamW at {_FINE_RATE:g}, weight decay of matrices only", "model.optimizer"))
    if not named_schedule:
        parts.append((f"WarmupCosine with {_FINE_WARMUP:.0%} of the steps to warm up", "model.lr_scheduler"))
    if clip is None:
        parts.append((f"gradients clipped at {CLIP:g}", "trainer.gradient_clip_val"))
    if not parts:
        return None
    texts, options = zip(*parts, strict=True)
    return f"fine-tuning: {', '.join(texts)}; for another set {', '.join(options)}"
