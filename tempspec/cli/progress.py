"""The progress bar of all stages (floor 6)."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["Progress"]


class Progress(RichProgressBar):
    """Rich's bar with short names: `train/loss` is shown as `loss`, no version number, four digits."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {_label(name): _short(value) for name, value in shown.items()}


def _label(name: str) -> str:
    """A metric's name as the bar shows it."""
    return name.removeprefix("train/").replace("tokens_per_second", "tok/s").replace("nats_per_token", "nats")


def _short(value: int | str | float | dict[str, float]) -> int | str | float | dict[str, float]:
    """A number to four digits; large ones without a fraction."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
