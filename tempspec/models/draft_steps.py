"""A draft model in one round: catch up on the text, then a token or a level of a tree at a time (floor 3).

Axes: B rows of the batch, N new tokens, M nodes of a level, V vocabulary, T token buffer.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core.trees import grown
from tempspec.models.ragged import RaggedModel

__all__ = ["DraftSteps", "Extent", "lacking"]


class Extent(NamedTuple):
    """What the host knows of a round's rows; no shape of the round depends on anything else of them.

    Attributes:
        shortest: tokens of the shortest row that is decoded.
        longest: tokens of the longest row.
        lacking: the most tokens of a row that the draft has to catch up on.
        drafted: the most tokens that a row may draft.
    """

    shortest: int
    longest: int
    lacking: int
    drafted: int


def lacking(rows: Iterable[tuple[int, int]], context: int) -> int:
    """The most tokens that a draft has to catch up on, at least the last one.

    Args:
        rows: the tokens of each row, and how many of them the draft's cache holds.
        context: the most tokens of a row that the draft reads.

    >>> lacking([(7, 6), (9, 7)], 32), lacking([(40, 39)], 32)
    (2, 1)
    """
    ends = ((min(length, context), cached) for length, cached in rows)
    return max(end - min(cached, end - 1) for end, cached in ends)


class DraftSteps:
    """The draft model of one round, as a drafter sees it (`interfaces.StepModel`): catch up, then one token per step.

    Args:
        model: the draft model.
        rows: B.
        extent: the round's; at most the draft's context is ever fed.
        vocabulary: ids from here on are padding of the head.

    Attributes:
        fed: drafted tokens fed so far; -1 before `catch_up`.
        largest_B: the sum of each position's largest logit, which is finite where all of them are numbers.
    """

    def __init__(self, model: RaggedModel, rows: int, extent: Extent, vocabulary: int) -> None:
        self._model = model
        self._width = extent.lacking
        self._short = min(extent.shortest, model.context) < extent.lacking
        self._longest = min(extent.longest, model.context)
        self.fed = -1
        self._vocabulary = vocabulary
        self.largest_B = torch.zeros(rows, dtype=torch.float32, device=model.device)
        self._grown_BNN: Tensor | None = None

    def catch_up(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Feed the tokens that the cache lacks (one or two a row); logits `[B, V]` after each row's last token.

        Every row is fed its last `width` tokens, even those that its cache holds: the same keys are written again.
        """
        width = self._width
        self._next_B = length_B.clamp(max=self._model.context)
        self.fed = 0
        start_B = (self._next_B - width).clamp_(min=0)
        column_BN = start_B[:, None] + torch.arange(width, device=start_B.device)
        token_BN = token_BT.gather(1, column_BN)
        longest = max(self._longest - width, 0)
        if not self._short:
            return self._watched(self._model.forward_last(token_BN, start_B, longest=longest))
        logits = self._model.forward(token_BN, start_B, longest=longest)
        return self._watched(logits[torch.arange(len(start_B), device=start_B.device), self._next_B - start_B - 1])

    def grow(self, token_BM: Tensor, parent_BM: Tensor) -> Tensor:
        """Feed nodes of a tree after the caught-up text; logits `[B, M, V]` after each.

        The next round's text is fed again from there: nothing of a tree counts as `fed`.
        """
        before = 0 if self._grown_BNN is None else self._grown_BNN.shape[1]
        self._grown_BNN = grown(self._grown_BNN, parent_BM)
        logits = self._model.forward(
            token_BM, self._next_B + before, longest=self._longest + before, visible_RNN=self._grown_BNN
        )
        return self._watched(logits)

    def step(self, token_B: Tensor) -> Tensor:
        """Feed one more token per row; logits `[B, V]` after it."""
        logits = self._model.forward_last(token_B[:, None], self._next_B, longest=self._longest)
        self._next_B = self._next_B + 1
        self._longest += 1
        self.fed += 1
        return self._watched(logits)

    def _watched(self, logits: Tensor) -> Tensor:
        """The logits, `[B, V]` or `[B, M, V]`, counted in `largest_B`."""
        self.largest_B += logits[..., : self._vocabulary].amax(-1).reshape(len(logits), -1).sum(-1)
        return logits
