"""Lightning's Trainer as the command line runs it (floor 6)."""

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from tempspec.cli.progress import watching
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError
from tempspec.modules.processes import is_first, refused_by_all

__all__ = ["GeneratingTrainer"]


class GeneratingTrainer(Trainer):
    """Lightning's Trainer with one more entry point, and a folder of its own for every stage."""

    @property
    def stage_folder(self) -> str:
        """Where the stage keeps its files; see `tempspec.files.stage_folder`."""
        return self.default_root_dir

    def generate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        cache_teacher: bool = False,
        cache_features: bool = False,
    ) -> None:
        """Write the target's own text at the sweep's generation temperatures, or a cache of the target.

        Args:
            model: a module with `begin_generation`.
            datamodule: where the prompts come from.
            ckpt_path: a checkpoint file, or `last`.
            cache_teacher: cache the target's logits on the training rows, as model.teacher says; no text is written.
            cache_features: cache the target's states on the training rows for a head, as model.features says; no text
                is written.

        Raises:
            UserError: several processes are to write a cache that one alone can write.
        """
        if cache_teacher or cache_features:
            self._cache("teacher" if cache_teacher else "features", model, datamodule)
            return
        model.begin_generation()  # type: ignore[operator]
        if isinstance(datamodule, TextDataModule):
            datamodule.begin_generation()
        self.predict(model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path)

    def _cache(self, kind: str, model: Any, data: Any) -> None:
        """Write a cache, in all processes where the target's layers are spread over them."""
        if self.world_size == 1:
            self._write_cache(kind, model, data)
            return
        if kind == "teacher" or not model.pair.options.shard_target:
            spread = ", or spread the target by model.loading.shard_target: true" if kind == "features" else ""
            raise UserError(
                f"--cache-{kind} expected one process, got {self.world_size}: set trainer.num_nodes and "
                f"trainer.devices to 1{spread}"
            )
        if self.strategy.launcher is None:  # the processes are there
            self._meet_and_write(kind, model, data)
        else:
            self.strategy.launcher.launch(self._meet_and_write, kind, model, data, trainer=self)

    def _meet_and_write(self, kind: str, model: Any, data: Any) -> None:
        """The same in one of several processes; the first one encodes the rows for all."""
        self.strategy.connect(model)
        self.strategy.setup_environment()
        model.trainer = self
        with refused_by_all():
            if is_first():
                data.setup("fit")
        self._write_cache(kind, model, data)

    def _write_cache(self, kind: str, model: Any, data: Any) -> None:
        with watching(self.progress_bar_callback is not None and self.is_global_zero) as watch:
            model.cache_target(kind, data, self.strategy.root_device, watch)
