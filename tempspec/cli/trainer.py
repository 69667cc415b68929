"""Lightning's Trainer as the command line runs it (floor 6)."""

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from tempspec.cli.progress import watching
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError

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
        """Write the target's own text at the sweep's generation temperatures, or what `model.teacher` keeps of it.

        Args:
            model: a module with `begin_generation`.
            datamodule: where the prompts come from.
            ckpt_path: a checkpoint file, or `last`.
            cache_teacher: cache the target's logits on the training rows, as model.teacher says; no text is written.
            cache_features: cache the target's states on the training rows for a head, as model.features says; no text
                is written.

        Raises:
            UserError: a cache is to be written by several processes.
        """
        if cache_teacher or cache_features:
            kind = "teacher" if cache_teacher else "features"
            if self.world_size > 1:
                raise UserError(
                    f"--cache-{kind} expected one process, got {self.world_size}: set trainer.num_nodes and "
                    "trainer.devices to 1"
                )
            with watching(self.progress_bar_callback is not None) as watch:
                model.cache_target(kind, datamodule, self.strategy.root_device, watch)  # type: ignore[operator]
            return
        model.begin_generation()  # type: ignore[operator]
        if isinstance(datamodule, TextDataModule):
            datamodule.begin_generation()
        self.predict(model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path)
