"""Where a law that is measured, or that verifies, is not quite the one that tokens are drawn from (floor 5).

In the engine it always is: a verifier is handed the very law that a draft token was drawn from, whatever the models'
dtypes are, compiled or not. Two places remain, and each says so in one line; that of half precision also says how slow
it is on this CPU.
"""

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from tempspec.models.dtype_speed import times_float32
from tempspec.modules.callbacks.serving_defaults import serving_note

__all__ = ["PrecisionNotes", "autocast_note", "half_note"]

logger = logging.getLogger(__name__)

_HALVES = (torch.bfloat16, torch.float16)
_SLOWER = 1.2
"""Times float32 from which on a dtype is called slower."""


class PrecisionNotes(pl.Callback):
    """Says before a measurement where its laws are not those of decoding, and before decoding where p moves.

    And where serving engines would decode otherwise.
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of `validate`; within fit, validation only follows the training."""
        if trainer.state.fn == "validate":
            _say(autocast_note(str(trainer.precision)))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As `on_validation_start`."""
        _say(autocast_note(str(trainer.precision)))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Of predict and generate."""
        models = {"the target": pl_module.pair.target_model, "the draft": pl_module.draft}
        dtypes = {name: model.dtype for name, model in models.items() if model is not None}
        target = models["the target"]
        halves = target.dtype in _HALVES and pl_module.device.type == "cpu"
        _say(half_note(dtypes, times_float32(target) if halves else None))
        runner, config = pl_module.runner, pl_module.pair.target_model.generation_config
        if note := serving_note(config, runner.sweep, generating=runner.generating):
            rank_zero_info(note)


def autocast_note(precision: str) -> str:
    """For acceptance that is measured under autocast, while decoding computes in the weights' own dtype; else empty.

    >>> autocast_note("32-true")
    ''
    >>> autocast_note("bf16-mixed").partition(":")[0]
    'trainer.precision is bf16-mixed'
    """
    if not precision.endswith("-mixed"):
        return ""
    return (
        f"trainer.precision is {precision}: this acceptance is computed under autocast, and predict "
        "draws and verifies in the weights' own dtype; --trainer.precision 32-true measures that"
    )


def half_note(dtypes: Mapping[str, torch.dtype], times: float | None = None) -> str:
    """For models whose logits depend on the batch's shape more than float32's do; empty where there are none.

    Args:
        dtypes: of the models, by their names.
        times: how much longer the target's own takes than float32, where that was measured.

    >>> half_note({"the target": torch.float32, "the draft": torch.float32})
    ''
    >>> half_note({"the target": torch.bfloat16, "the draft": torch.float32}).partition(":")[0]
    'the target computes in bfloat16'
    >>> half_note({"the target": torch.bfloat16}, times=3.21).rpartition("; ")[2]
    '--model.loading.dtype float32 is exact, and faster: bfloat16 takes 3.2 times as long on this CPU'
    """
    halves = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items() if dtype in _HALVES}
    if not halves:
        return ""
    named = " and ".join(f"{name} computes in {dtype}" for name, dtype in halves.items())
    slower = times is not None and times >= _SLOWER
    speed = f", and faster: {next(iter(halves.values()))} takes {times:.1f} times as long on this CPU" if slower else ""
    return (
        f"{named}: logits may depend on the batch's shape, so what verifies is not quite what plain decoding samples, "
        f"and a request may get other tokens in another batch; --model.loading.dtype float32 is exact{speed}"
    )


@rank_zero_only
def _say(note: str) -> None:
    """One line on the screen."""
    if note:
        logger.warning("%s", note)
