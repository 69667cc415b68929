"""The acceptance of whatever language model a LightningModule trains, against a target (floor 5)."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.errors import UserError
from tempspec.metrics.table import ResultTable
from tempspec.modules.callbacks.probe import AcceptanceProbe, FindDraft, HeldOut, draft_of
from tempspec.modules.callbacks.step_clock import StepClock

__all__ = ["AcceptanceCallback"]


class AcceptanceCallback(Callback):
    """Measures in any training how much a target would accept of the model that is trained, and logs it.

    Logs `acceptance/T1` and so on, one for each temperature of both models, on held-out text: behind every validation,
    or behind every so many optimiser steps; in any case at the end of training. `table()` has all pairs of temperatures
    with their intervals. The model has to be whole on every process, as under DDP. Every process measures all of the
    text.

    Args:
        target: the target, or its folder or hub name.
        data: held-out text: a data module, whose validation sets are read; a loader of batches with `input_ids` and,
            where not all tokens count, `attention_mask` and `loss_mask` or `labels`; or a list of texts.
        temperatures: of target and draft; 0 is argmax.
        draft: where the model is in the module: the name of an attribute (dots lead deeper), or a function of the
            module; by default `draft`, else `model`, else the module itself.
        every_n_steps: measure behind every so many optimiser steps; behind every validation by default.
        tokenizer: of texts, or its name; by default what lies beside the target.
        max_length: the most tokens of a text.
        batch_size: texts at a time.
        limit: batches that are read at most; all by default.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        target: str | PreTrainedModel,
        data: HeldOut,
        temperatures: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
        *,
        draft: FindDraft | None = None,
        every_n_steps: int | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        max_length: int = 512,
        batch_size: int = 8,
        limit: int | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps must be 1 or more, got {every_n_steps}")
        self.draft = draft
        self.every_n_steps = every_n_steps
        self._probe = AcceptanceProbe(
            target,
            data,
            temperatures,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            limit=limit,
        )
        self._steps = StepClock()
        self._measured: int | None = None

    def table(self) -> ResultTable:
        """The last measurement at every pair of temperatures.

        Raises:
            UserError: nothing was measured yet.
        """
        return self._probe.table()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._steps, self._measured = StepClock(trainer.global_step), None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure, where a step is due."""
        step = trainer.global_step
        if self._steps.stepped(step) and self.every_n_steps and step % self.every_n_steps == 0:
            self._log(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, where no steps are named; not in the trial before training."""
        if self.every_n_steps is None and not trainer.sanity_checking:
            self._log(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step, unless that was done; here Lightning takes metrics for loggers alone."""
        if self._measured != trainer.global_step:
            found = self._probe.measure(draft_of(pl_module, self.draft))
            for logger in trainer.loggers:
                logger.log_metrics(found, trainer.global_step)

    def _log(self, pl_module: LightningModule) -> None:
        self._measured = pl_module.global_step
        for name, value in self._probe.measure(draft_of(pl_module, self.draft)).items():
            pl_module.log(name, value, rank_zero_only=True)
