"""`AcceptanceCallback` for transformers' Trainer, and so for TRL's (floor 5)."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from tempspec.modules.callbacks.measuring import MeasuresAcceptance

__all__ = ["AcceptanceTrainerCallback"]


class AcceptanceTrainerCallback(MeasuresAcceptance, TrainerCallback):
    """As `AcceptanceCallback`, in `transformers.Trainer(callbacks=[...])` and those that derive from it.

    Measures after every evaluation, or after every so many steps; in any case at the end of training. What it finds
    joins the evaluation's metrics as `eval_acceptance/T1`, which `metric_for_best_model` may name, and the trainer's
    `state.log_history`. Other loggers get it where `log` is set: `callback.log = trainer.log`. The options are those of
    `MeasuresAcceptance`; `draft` is by default the trainer's own model.

    Attributes:
        log: called with what was found, such as the trainer's `log`; `state.log_history` gets it by default.
    """

    log: Callable[[dict[str, float]], Any] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure, where a step is due."""
        if self._due(state.global_step):
            self._tell(state, self._measure(model, state.global_step))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Measure, where no steps are named."""
        if self.every_n_steps is None:
            found = {f"eval_{name}": value for name, value in self._measure(model, state.global_step).items()}
            if metrics is not None:
                metrics.update(found)
            self._tell(state, found)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the last step, unless that was done."""
        if self._measured != state.global_step:
            self._tell(state, self._measure(model, state.global_step))

    def _tell(self, state: Any, found: dict[str, float]) -> None:
        if self.log is not None:
            self.log(found)
        else:
            state.log_history.append(found | {"step": state.global_step})
