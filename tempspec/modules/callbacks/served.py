"""The best checkpoint by what is served: tokens per round at the temperatures of serving (floor 5)."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.errors import UserError
from tempspec.files import stage_folder

__all__ = ["SERVED", "BestServed"]

SERVED = "val/block_efficiency"
"""What is logged of a validation: expected tokens per round."""


class BestServed(ModelCheckpoint):
    """Keeps the checkpoint of the validation with the most tokens per round, whose weights fit then leaves."""

    def __init__(self) -> None:
        super().__init__(
            filename="best-{step}",
            monitor=SERVED,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # which Lightning takes for asked where every batch is validated
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep it in the folder of fit.

        Raises:
            UserError: nothing is validated.
        """
        if stage == "fit" and trainer.limit_val_batches == 0:
            raise UserError(
                "model.serve_temperatures chooses weights by validation, and there is none: set "
                "trainer.limit_val_batches above 0, or leave it out"
            )
        self.dirpath = str(stage_folder(trainer))
        super().setup(trainer, pl_module, stage)
