"""What the two acceptance callbacks share: their options, the probe, and when it was last used (floor 5)."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.errors import UserError
from tempspec.metrics.table import ResultTable
from tempspec.modules.callbacks.probe import AcceptanceProbe, FindDraft, HeldOut, draft_of

__all__ = ["MeasuresAcceptance"]


class MeasuresAcceptance:
    """A callback that measures what a target would accept of a model in training; it knows no trainer.

    Args:
        target: the target, or its folder or hub name.
        data: held-out text: a data module, whose validation sets are read; a loader of batches with `input_ids` and,
            where not all tokens count, `attention_mask` and `loss_mask` or `labels`; or a list of texts.
        temperatures: of target and draft; 0 is argmax.
        draft: where the model is in what is trained: the name of an attribute (dots lead deeper), or a function of the
            module; by default `draft`, else `model`, else the module itself.
        every_n_steps: measure after every so many optimiser steps; after every validation by default.
        tokenizer: of texts, or its name; by default what is in the target's folder.
        max_length: the most tokens of a text.
        batch_size: texts at a time.
        limit: batches that are read at most; all by default.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        target: str | PreTrainedModel,
        data: HeldOut,
        temperatures: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
        *,
        draft: FindDraft | None = None,
        every_n_steps: int | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        max_length: int = 512,
        batch_size: int = 8,
        limit: int | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps must be 1 or more, got {every_n_steps}")
        self.draft = draft
        self.every_n_steps = every_n_steps
        self._probe = AcceptanceProbe(
            target,
            data,
            temperatures,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            limit=limit,
        )
        self._measured: int | None = None

    def table(self) -> ResultTable:
        """The last measurement at every pair of temperatures.

        Raises:
            UserError: nothing was measured yet.
        """
        return self._probe.table()

    def _due(self, step: int) -> bool:
        """Whether every so many steps are named, and this one is such a step."""
        return bool(self.every_n_steps) and step % (self.every_n_steps or 1) == 0

    def _measure(self, model: Any, step: int) -> dict[str, float]:
        """The acceptance at equal temperatures at a step."""
        self._measured = step
        return self._probe.measure(draft_of(model, self.draft))
