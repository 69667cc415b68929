"""What a stage says of itself: config.yaml and environment.json, written once its run is accepted (floor 6)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from tempspec.data.environment import describe_environment, write_environment
from tempspec.data.module import TextDataModule
from tempspec.files import write_atomically
from tempspec.own_yaml import read_own_yaml

__all__ = ["RunRecord"]

_RESULTS = {
    "validate": "metrics.json",
    "test": "metrics.json",
    "predict": "predictions.parquet",
    "generate": "generated.parquet",
}
"""The file that says that a stage's folder holds finished results."""


class RunRecord(Callback):
    """Writes the resolved configuration and the environment to the stage's folder, whatever logger is used.

    A command that is refused or fails leaves the record of the finished one as it was: fit writes after its first
    batch; the others when they begin, but in a folder that holds finished results only together with their own.

    Args:
        parser: the subcommand's.
        config: what it parsed.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any) -> None:
        self._parser = parser
        self._config = config
        self._written = False
        self._text = ""
        self._environment: dict[str, Any] | None = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """A fit that fails in its first step has left nothing."""
        self.finish(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, unless it is a validation within fit."""
        if trainer.state.fn == "validate":
            self._begin(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin: the row store has accepted what the rows are made from."""
        self._begin(trainer)

    def finish(self, trainer: Trainer, data: TextDataModule | None = None) -> None:
        """Write the record now, unless that is done.

        Args:
            trainer: of the stage.
            data: what it reads, where the trainer was not given it, because it runs nothing.
        """
        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        folder = Path(trainer.default_root_dir)
        write_atomically(folder / "config.yaml", self.text())
        write_environment(folder, self._environment or self._now(trainer, data))

    def text(self) -> str:
        """The resolved configuration, which every subcommand can read again."""
        if not self._text:
            config = self._config.clone()
            for option in ("cache_teacher", "cache_features"):  # generate's alone
                config.pop(option, None)
            self._text = cast(str, self._parser.dump(config, skip_none=False))
        return self._text

    def resolved(self) -> Mapping[str, Any]:
        """The same as a mapping."""
        return cast(Mapping[str, Any], read_own_yaml(self.text()))

    def _begin(self, trainer: Trainer) -> None:
        """Note what the stage runs with; write it, unless that would put it beside results of another run."""
        if self._written or not trainer.is_global_zero:
            return
        self._environment = self._now(trainer, None)
        folder = Path(trainer.default_root_dir)
        if not (folder / _RESULTS[folder.name]).exists():
            self.finish(trainer)

    @staticmethod
    def _now(trainer: Trainer, data: TextDataModule | None) -> dict[str, Any]:
        """What the stage runs with."""
        read = trainer.datamodule if data is None else data  # type: ignore[attr-defined]
        stage = trainer.state.fn.value if trainer.state.fn else "predict"
        device = str(trainer.strategy.root_device)
        return describe_environment(read.sources(stage), device=device, processes=trainer.world_size)
