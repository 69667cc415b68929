"""The progress of all stages: a bar on a terminal, and for decoding lines where there is none (floor 6)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn, ProcessingSpeedColumn
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar

from tempspec.decoding.pace import Pace

__all__ = ["PaceLines", "Progress", "watching"]

FIRST_LINE = 5.0
"""Seconds from the first token to the first line."""

LINE_EVERY = 30.0
"""Seconds between two lines."""

_LOOK_EVERY = 0.5
"""Seconds between two looks at the metrics of a training: each waits for the GPU."""


class PaceLines:
    """One line now and then about a pass that is being decoded.

    Args:
        stream: where the lines go; standard error by default.
        clock: seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._name = ""
        self._due: float | None = None

    def show(self, pace: Pace) -> None:
        """Write a line if it is time for one."""
        if pace.name != self._name:
            self._name, self._due = pace.name, None
        if not pace.counts.tokens and not pace.trouble:
            return
        now = self._clock()
        if self._due is None:
            self._due = now + FIRST_LINE
        if now >= self._due:
            self._due = now + LINE_EVERY
            print(pace, file=self._stream or sys.stderr, flush=True)


class Progress(RichProgressBar):
    """Rich's bar with short names: `train/loss` is shown as `loss`, no version number, four digits.

    Predict and generate count rows, not Lightning's batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked_at = 0.0
        self._shown: dict[str, int | str | float | dict[str, float]] = {}

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Lightning's columns, short enough that the metrics fit on the same line of 80 columns."""
        # Of decoding we know more than how many rows are done: its time left goes by tokens.
        dropped = (ProcessingSpeedColumn, CustomTimeColumn) if trainer.predicting else (ProcessingSpeedColumn,)
        columns = [column for column in super().configure_columns(trainer) if type(column) not in dropped]
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 6
        return columns

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown beside the bar; in the middle of training read twice a second."""
        now, midway = monotonic(), trainer.training and not trainer.is_last_batch
        if midway and now - self._looked_at < _LOOK_EVERY:
            return self._shown
        self._looked_at, self._shown = now, self._read_metrics(trainer, pl_module)
        return self._shown

    def _read_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {_label(name): _short(value) for name, value in shown.items()}

    def _get_train_description(self, current_epoch: int) -> str:
        """Without Lightning's "/-2" for a run that counts steps."""
        last = self.trainer.max_epochs or 0
        return f"Epoch {current_epoch}" + (f"/{last - 1}" if last > 0 else "")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch what decodes."""
        super().on_predict_start(trainer, pl_module)
        runner = getattr(pl_module, "runner", None)
        if runner is not None and self.is_enabled and trainer.is_global_zero:
            terminal = self._console is not None and self._console.is_terminal
            runner.watch = self._show if terminal else PaceLines().show

    def on_predict_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave the bar alone: it stays over all passes."""

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave the bar alone: it has moved with the rows."""

    def _show(self, pace: Pace) -> None:
        """Move the bar."""
        if self.progress is None:
            return
        if self.predict_progress_bar_id is None:
            self.predict_progress_bar_id = self._add_task(pace.all_rows, pace.name)
        self.progress.update(self.predict_progress_bar_id, **_state(pace))
        self.refresh()


@contextmanager
def watching(shown: bool = True) -> Iterator[Callable[[Pace], None] | None]:
    """What shows a pass that no Trainer runs: a bar on a terminal, lines where there is none.

    Args:
        shown: whether to show anything.
    """
    console = get_console()
    if not shown:
        yield None
    elif not console.is_terminal:
        yield PaceLines().show
    else:
        with Bar(TextColumn("{task.description}"), BarColumn(6), MofNCompleteColumn(), console=console) as bar:
            task = bar.add_task("")
            yield lambda pace: bar.update(task, **_state(pace))


def _state(pace: Pace) -> dict[str, Any]:
    """What a bar shows of a pace."""
    figures = (f"{name} {value}" for name, value in pace.figures().items())
    description = "  ".join([pace.name, *figures, *[pace.trouble] * bool(pace.trouble)])
    return {"total": pace.all_rows, "completed": pace.rows, "description": description}


def _label(name: str) -> str:
    """A metric's name as the bar shows it."""
    return name.removeprefix("train/").replace("nats_per_token", "nats").replace("acceptance", "acc")


def _short(value: int | str | float | dict[str, float]) -> int | str | float | dict[str, float]:
    """A number to four digits; large ones without a fraction."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
