"""`AcceptanceCallback` for transformers' Trainer, and so for TRL's (floor 5)."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from tempspec.errors import UserError
from tempspec.metrics.table import ResultTable
from tempspec.modules.callbacks.probe import AcceptanceProbe, FindDraft, HeldOut, draft_of

__all__ = ["AcceptanceTrainerCallback"]


class AcceptanceTrainerCallback(TrainerCallback):
    """As `AcceptanceCallback`, in `transformers.Trainer(callbacks=[...])` and those that derive from it.

    Measures behind every evaluation, or behind every so many steps; in any case at the end of training. What it finds
    joins the evaluation's metrics as `eval_acceptance/T1`, which `metric_for_best_model` may name, and the trainer's
    `state.log_history`. Other loggers get it where `log` is set: `callback.log = trainer.log`.

    Args:
        target: see `AcceptanceCallback`, here and below.
        data: held-out text.
        temperatures: of target and draft.
        draft: where the model is in the trainer's; that itself by default.
        every_n_steps: measure behind every so many steps; behind every evaluation by default.
        tokenizer: of texts.
        max_length: the most tokens of a text.
        batch_size: texts at a time.
        limit: batches that are read at most.

    Attributes:
        log: called with what was found, such as the trainer's `log`; `state.log_history` gets it by default.

    Raises:
        UserError: an option is out of its range.
    """

    log: Callable[[dict[str, float]], Any] | None = None

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
        self._measured: int | None = None
        self._probe = AcceptanceProbe(
            target,
            data,
            temperatures,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            limit=limit,
        )

    def table(self) -> ResultTable:
        """The last measurement at every pair of temperatures.

        Raises:
            UserError: nothing was measured yet.
        """
        return self._probe.table()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure, where a step is due."""
        if self.every_n_steps and state.global_step % self.every_n_steps == 0:
            self._tell(state, self._measure(state, model))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Measure, where no steps are named."""
        if self.every_n_steps is None:
            found = {f"eval_{name}": value for name, value in self._measure(state, model).items()}
            if metrics is not None:
                metrics.update(found)
            self._tell(state, found)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the last step, unless that was done."""
        if self._measured != state.global_step:
            self._tell(state, self._measure(state, model))

    def _measure(self, state: Any, model: Any) -> dict[str, float]:
        self._measured = state.global_step
        return self._probe.measure(draft_of(model, self.draft))

    def _tell(self, state: Any, found: dict[str, float]) -> None:
        if self.log is not None:
            self.log(found)
        else:
            state.log_history.append(found | {"step": state.global_step})
