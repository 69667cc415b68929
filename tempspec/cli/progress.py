"""The progress bar of all stages (floor 6)."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import BarColumn, ProgressColumn

from tempspec.modules.prediction import DecodingProgress

__all__ = ["Progress"]


class Progress(RichProgressBar):
    """Rich's bar with short names: `train/loss` is shown as `loss`, no version number, four digits."""

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Lightning's columns, short enough that the metrics stand on the same line of 80 columns."""
        columns = [column for column in super().configure_columns(trainer) if type(column) is not ProcessingSpeedColumn]
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 6
        return columns

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {_label(name): _short(value) for name, value in shown.items()}

    def _get_train_description(self, current_epoch: int) -> str:
        """Without Lightning's "/-2" for a run that counts steps."""
        last = self.trainer.max_epochs or 0
        return f"Epoch {current_epoch}" + (f"/{last - 1}" if last > 0 else "")

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Advance, and show what decoding measured so far."""
        super().on_predict_batch_end(trainer, pl_module, *args, **kwargs)
        bar, progress = self.predict_progress_bar_id, self.progress
        figures = [c.figures() for c in trainer.callbacks if isinstance(c, DecodingProgress)]  # type: ignore[attr-defined]
        if bar is not None and progress is not None and figures:
            shown = "  ".join(f"{name} {value}" for name, value in figures[0].items())
            progress.update(bar, description=f"{self.predict_description}  {shown}")


def _label(name: str) -> str:
    """A metric's name as the bar shows it."""
    return name.removeprefix("train/").replace("nats_per_token", "nats").replace("acceptance", "acc")


def _short(value: int | str | float | dict[str, float]) -> int | str | float | dict[str, float]:
    """A number to four digits; large ones without a fraction."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
