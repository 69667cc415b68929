"""A stop when the loss is no longer a number (floor 5)."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Optimizer

from tempspec.errors import UserError
from tempspec.modules.callbacks.late import Late
from tempspec.modules.processes import RaisedByAll, all_reduced, of_all

__all__ = ["FiniteLoss", "NotFinite"]

_NAMED = 16
"""Rows that a message names at most."""


class NotFinite(RaisedByAll, UserError):
    """The loss is no number, on some process; all of them raise it."""


class _Batch(NamedTuple):
    """A batch's loss and the keys of its rows, both where they were made: reading either waits for a GPU."""

    loss: Tensor
    keys: Tensor


class _Taken(NamedTuple):
    """An optimiser step that nobody has looked at yet: whether any process' loss was broken, and its batches."""

    step: int
    broken: Late
    batches: list[_Batch]


class FiniteLoss(Callback):
    """Ends training, on all ranks, before a NaN or infinite loss reaches the weights.

    The checkpoint that is saved on the way out is therefore still good. The message names the batch's rows by their
    keys, of the first process whose loss is broken.

    An optimiser that can leave out a step on the device (torch's fused ones) is told on the device to do so. Then the
    host looks a step later, when it need not wait, and always before a checkpoint, a validation or the end. The step
    counts as taken: a continued run begins after its batch.

    Args:
        late: look later where the optimiser allows it; not for a module that learns from its loss by other means, too.
    """

    def __init__(self, late: bool = False) -> None:
        self.late = late
        self._skips = False
        self._keys = torch.empty(0, dtype=torch.int64)
        self._batches: list[_Batch] = []
        self._taken: _Taken | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the optimiser can leave out a step."""
        self._batches, self._taken = [], None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._skips = self.late and scaler is None and all(map(_leaves_out, trainer.optimizers))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which rows the coming loss is of."""
        self._keys = batch["key"]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss, or remember it.

        Raises:
            NotFinite: it is not finite here or on another rank.
        """
        batch = _Batch(loss.detach(), self._keys)
        if self._skips:
            self._batches.append(batch)
        elif bool(all_reduced(_broken([batch]), "max")):
            _stop(trainer.global_step, [batch])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let the optimiser leave out a broken step; look at the one before.

        Raises:
            NotFinite: the loss of the step before was not finite.
        """
        if not self._skips:
            return
        self._look()
        broken = all_reduced(_broken(self._batches), "max")
        optimizer.found_inf = broken  # type: ignore[attr-defined]  # torch's own name, by which GradScaler tells it
        self._taken = _Taken(trainer.global_step, Late(broken), self._batches)
        self._batches = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before anything is measured."""
        self._look()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before anything is saved."""
        self._look()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the epoch's last step."""
        self._look()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What ends the training is told, and a checkpoint saved on the way out: a broken step was left out of it."""
        self._batches, self._taken = [], None

    def _look(self) -> None:
        """Stop if the last step was broken."""
        taken, self._taken = self._taken, None
        if taken is not None and bool(taken.broken.read()):
            _stop(taken.step, taken.batches)


def _leaves_out(optimizer: Optimizer) -> bool:
    """Whether an optimiser looks at `found_inf`, and keeps its state: torch's fused ones, on whole parameters.

    SGD does not: a first step that it leaves out makes a momentum of whatever the memory holds.
    """
    if isinstance(optimizer, SGD):
        return False
    groups = optimizer.param_groups
    whole = not any(isinstance(one, DTensor) for group in groups for one in group["params"])
    return type(optimizer).__module__.startswith("torch.optim.") and whole and all(g.get("fused") for g in groups)


def _broken(batches: list[_Batch]) -> Tensor:
    """Whether any loss is not finite, 1 or 0, on the device."""
    return (~torch.stack([batch.loss for batch in batches]).isfinite()).any().float()


def _stop(step: int, batches: list[_Batch]) -> None:
    """Raise; called by all processes at once.

    Raises:
        NotFinite: always.
    """
    own = next((batch for batch in batches if not bool(batch.loss.isfinite())), None)
    found = None if own is None else (own.loss.item(), own.keys.flatten().tolist())
    value, keys = next(one for one in of_all(found) if one is not None)
    rest = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    raise NotFinite(
        f"the loss is {value} at step {step} (rows with keys {', '.join(map(str, keys[:_NAMED]))}"
        f"{rest}): lower the learning rate, clip gradients (trainer.gradient_clip_val: 1.0), or train in "
        "bf16-mixed, not 16-mixed"
    )
