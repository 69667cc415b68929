"""Where a law that is measured, or that verifies, is not quite the one that tokens are drawn from (floor 5).

In the engine it always is: a verifier is handed the very law that a draft token was drawn from, whatever the models'
dtypes are, compiled or not. Two places remain, and each says so in one line; so does a dtype that is slow here.
"""

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from tempspec.modules.callbacks.serving_defaults import serving_note

__all__ = ["PrecisionNotes", "autocast_note", "half_note", "slow_note"]

logger = logging.getLogger(__name__)

_HALVES = (torch.bfloat16, torch.float16)
_WITHOUT_HALVES = ("NO AVX", "AVX2")
"""Capabilities of x86 CPUs on which torch computes in half precision by converting back and forth."""


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
        _say(half_note(dtypes))
        if pl_module.device.type == "cpu":
            _say(slow_note(dtypes, torch.backends.cpu.get_cpu_capability()))
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


def half_note(dtypes: Mapping[str, torch.dtype]) -> str:
    """For models whose logits depend on the batch's shape more than float32's do; empty where there are none.

    >>> half_note({"the target": torch.float32, "the draft": torch.float32})
    ''
    >>> half_note({"the target": torch.bfloat16, "the draft": torch.float32}).partition(":")[0]
    'the target computes in bfloat16'
    """
    halves = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items() if dtype in _HALVES}
    if not halves:
        return ""
    named = " and ".join(f"{name} computes in {dtype}" for name, dtype in halves.items())
    return (
        f"{named}: logits may depend on the batch's shape, so what verifies is not quite what plain decoding samples, "
        "and a request may get other tokens in another batch; --model.loading.dtype float32 is exact"
    )


def slow_note(dtypes: Mapping[str, torch.dtype], capability: str) -> str:
    """For models whose dtype this CPU has no instructions for; empty where there are none.

    Args:
        dtypes: of the models, by their names.
        capability: the CPU's, as `torch.backends.cpu.get_cpu_capability` says it.

    >>> slow_note({"the target": torch.bfloat16}, "AVX512")
    ''
    >>> slow_note({"the target": torch.bfloat16}, "AVX2").partition(":")[0]
    'this CPU has no instructions for the dtype of the target'
    """
    halves = [name for name, dtype in dtypes.items() if dtype in _HALVES]
    if capability not in _WITHOUT_HALVES or not halves:
        return ""
    return (
        f"this CPU has no instructions for the dtype of {' and '.join(halves)}: float32 is several times faster; "
        "--model.loading.dtype float32"
    )


@rank_zero_only
def _say(note: str) -> None:
    """One line on the screen."""
    if note:
        logger.warning("%s", note)
