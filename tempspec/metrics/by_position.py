"""Decoding metrics with a number for every position of the round, as torchmetrics (floor 4).

Axes: S positions, K the most drafted tokens of a round.
"""

from collections.abc import Iterable
from typing import Any

from tempspec.metrics.bootstrap import REPLICATES, Sums, running_product
from tempspec.metrics.counts import Counts
from tempspec.metrics.decoding import RowRatio
from tempspec.metrics.rows import DecodedRow

__all__ = ["AcceptedLengthHistogram", "ByPosition", "ConditionalAcceptance", "JointAcceptance", "longest_draft"]


class ByPosition(RowRatio):
    """A ratio per position of the round.

    Args:
        longest: K, the most tokens that a round drafts.
        replicates: bootstrap replicates.
        kwargs: torchmetrics' own options.
    """

    first = 1
    """The position of the first entry."""

    def __init__(self, longest: int, *, replicates: int = REPLICATES, **kwargs: Any) -> None:
        super().__init__(entries=longest + 1 - self.first, replicates=replicates, **kwargs)
        self.longest = longest

    def update(self, *rows: DecodedRow) -> None:
        """Count requests.

        Raises:
            ValueError: a round drafted more than `longest` tokens.
        """
        if (got := longest_draft(rows)) > self.longest:
            raise ValueError(
                f"{type(self).__name__} expected rounds of at most {self.longest} drafted tokens, got {got}"
            )
        super().update(*rows)


class ConditionalAcceptance(ByPosition):
    """Acceptance at position i = 1..K given that all earlier ones were accepted: accepted / tested there.

    >>> metric = ConditionalAcceptance(longest=2)
    >>> metric.update({"prompt_key": 7, "drafted": [2, 2, 2], "tested": [1, 2, 2], "accepted": [0, 1, 2]})
    >>> [round(estimate.value, 3) for estimate in metric.estimates()]
    [0.667, 0.5]
    """

    def counts(self, row: DecodedRow) -> Counts:
        """Rounds that accepted position i, out of those that tested it, i = 1..K."""
        return Counts(self._reached(row["accepted"]), self._reached(row["tested"]))

    def _reached(self, lengths: list[int]) -> list[int]:
        """How many rounds reached each position."""
        return [sum(length >= position for length in lengths) for position in range(1, self.longest + 1)]


class JointAcceptance(ConditionalAcceptance):
    """The chance that positions 1..i are all accepted, i = 1..K: the product of the conditional acceptances up to i.

    Not the share of the rounds that drafted i tokens: an accepted stop token ends a round early, and leaving such
    rounds out would leave out accepted tokens alone.

    >>> metric = JointAcceptance(longest=2)
    >>> metric.update({"prompt_key": 7, "drafted": [2, 2, 1, 2], "tested": [1, 2, 1, 2], "accepted": [0, 1, 1, 2]})
    >>> [round(estimate.value, 3) for estimate in metric.estimates()]
    [0.75, 0.375]
    """

    def _local_sums(self) -> Sums:
        return running_product(super()._local_sums())


class AcceptedLengthHistogram(ByPosition):
    """The share of rounds that accepted exactly j = 0..K tokens; sums to 1.

    >>> metric = AcceptedLengthHistogram(longest=2)
    >>> metric.update({"prompt_key": 7, "drafted": [2, 2, 2, 2], "accepted": [0, 1, 2, 2]})
    >>> [estimate.value for estimate in metric.estimates()]
    [0.25, 0.25, 0.5]
    """

    first = 0

    def counts(self, row: DecodedRow) -> Counts:
        """Rounds that accepted exactly j tokens, out of all rounds, j = 0..K."""
        accepted = row["accepted"]
        lengths = range(self.longest + 1)
        return Counts([accepted.count(length) for length in lengths], [len(accepted)] * len(lengths))


def longest_draft(rows: Iterable[DecodedRow]) -> int:
    """The most tokens that any round of these rows drafted."""
    return max((drafted for row in rows for drafted in row["drafted"]), default=0)
