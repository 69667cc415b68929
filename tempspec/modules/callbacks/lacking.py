"""The callbacks of a module that its trainer has not yet (floor 5)."""

from lightning.pytorch import Callback, LightningModule

__all__ = ["lacking"]


def lacking(module: LightningModule, *callbacks: Callback) -> list[Callback]:
    """Those of a kind that the trainer lacks; for `configure_callbacks`.

    A second stage of the same trainer has them from the first: Lightning would put the same ones in their place, and
    say so. One that a user has given stays.
    """
    trainer = module._trainer
    present = {type(one) for one in trainer.callbacks} if trainer is not None else set()  # type: ignore[attr-defined]
    return [one for one in callbacks if type(one) not in present]
