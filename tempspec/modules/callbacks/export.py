"""The trained model as a `save_pretrained` folder (floor 5)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from tempspec.modules.fit.sharding import whole_state

__all__ = ["Exportable", "PretrainedExport"]


class Exportable(Protocol):
    """A module whose model is exported."""

    @property
    def export_name(self) -> str:
        """The name of its folder, in that of fit."""

    def export_model(self) -> nn.Module:
        """The model to write, with its current weights."""

    def save_export(self, folder: Path, state: dict[str, Any] | None) -> None:
        """Write it.

        Args:
            folder: where to; what is there is replaced in the last moment.
            state: its weights, where the model itself holds only a part of them.
        """


class PretrainedExport(Callback):
    """Writes the module's model and tokenizer into a folder that `from_pretrained` reads.

    Where a `ModelCheckpoint` monitors a metric, the folder always holds its best checkpoint's weights; otherwise it is
    written at the end of training.

    Args:
        folder: the folder that the module's own `export_name` is put into.
        record: called with the folder of the model whenever it was written, on rank 0: to keep beside it what made it.
    """

    def __init__(self, folder: str | Path, record: Callable[[Path], None] = lambda model: None) -> None:
        self.folder = Path(folder)
        self.record = record
        self.best = ""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Export when the checkpoint being saved is the best so far."""
        best = _best_path(trainer)
        if best != self.best:
            self.best = best
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the last weights, unless a best checkpoint is tracked.

        Not in `on_train_end`, which a run does not reach that is continued from the checkpoint of its last step.
        """
        if not self.best:
            self._export(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoint the folder holds."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep knowing which checkpoint the folder holds."""
        self.best = state_dict["best"]

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder, on rank 0."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module = cast(Exportable, pl_module)
        state = whole_state(module.export_model())
        if trainer.is_global_zero:
            model = self.folder / module.export_name
            module.save_export(model, state)
            self.record(model)


def _best_path(trainer: Trainer) -> str:
    """The path of the best checkpoint of the first monitoring `ModelCheckpoint`, or the empty string."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            return callback.best_model_path
    return ""
