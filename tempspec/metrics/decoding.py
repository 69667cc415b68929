"""The decoding metrics over rows, one written definition each (floor 4). Their collection over a sweep: `collection.py`.

Every metric is token-weighted: a ratio of two sums over rows, with a 95% interval from a bootstrap over prompts. What
is counted is in `tempspec.metrics.functional`; a class here is such a function plus its remembered options.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch

from tempspec.metrics import functional as F
from tempspec.metrics.bootstrap import REPLICATES, Estimate, Sums, running_product
from tempspec.metrics.ratio import BootstrapRatio, paired_ratio
from tempspec.metrics.rows import DecodedRow

__all__ = [
    "MBSU",
    "AcceptanceRate",
    "AcceptedLength",
    "AcceptedLengthHistogram",
    "AnalyticAcceptance",
    "BlockEfficiency",
    "ByPosition",
    "ConditionalAcceptance",
    "DraftAcceptance",
    "ForeseenLength",
    "JointAcceptance",
    "KLFromTarget",
    "OptimalAcceptance",
    "OverheadShare",
    "RowRatio",
    "TokensPerSecond",
    "TotalVariationFromTarget",
    "longest_draft",
    "speedup",
]


class RowRatio(BootstrapRatio):
    """A ratio of sums over rows; a subclass says what one row counts."""

    higher_is_better = True

    @abstractmethod
    def counts(self, row: DecodedRow) -> F.Counts:
        """Numerators and denominators of one row, one number an entry."""

    def update(self, *rows: DecodedRow) -> None:
        """Count requests; many at once are much cheaper than one by one."""
        counts_N2S = torch.tensor([self.counts(row) for row in rows], dtype=torch.float64, device=self.device)
        key_N = torch.tensor([row["prompt_key"] for row in rows], dtype=torch.int64, device=self.device)
        self.add(counts_N2S[:, 0], counts_N2S[:, 1], key_N)


class AcceptanceRate(RowRatio):
    """Accepted / tested: Leviathan's alpha, the chance that a draft token whose forerunners stand is accepted.

    Leviathan, Kalman and Matias 2023, definition 3.1. A token behind a rejection is not tested and does not count.

    >>> metric = AcceptanceRate()
    >>> metric.update({"prompt_key": 7, "drafted": [3, 3], "tested": [2, 3], "accepted": [1, 3]})
    >>> metric.estimate().value
    0.8
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.acceptance_rate_counts`."""
        return F.acceptance_rate_counts(row)


class AnalyticAcceptance(RowRatio):
    """The verifier's expected acceptance averaged over tested tokens: `sum min(p, q)` for token-wise rejection.

    The analytic twin of `AcceptanceRate` over the same positions, without the noise of the accept coins: their
    difference (`acceptance_gap` in `DecodingMetrics`) must cover 0. Rows without expected acceptances do not count.

    >>> metric = AnalyticAcceptance()
    >>> metric.update({"prompt_key": 7, "tested": [2, 3], "expected": [1.25, 2.5]})
    >>> metric.estimate().value
    0.75
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.analytic_acceptance_counts`."""
        return F.analytic_acceptance_counts(row)


class DraftAcceptance(RowRatio):
    """Accepted / drafted: what serving engines print. At most the acceptance rate: tokens behind a rejection count.

    >>> metric = DraftAcceptance()
    >>> metric.update({"prompt_key": 7, "drafted": [4, 4], "accepted": [1, 3]})
    >>> metric.estimate().value
    0.5
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.draft_acceptance_counts`."""
        return F.draft_acceptance_counts(row)


class AcceptedLength(RowRatio):
    """Accepted / rounds: draft tokens accepted per round, the bonus or correction token excluded.

    >>> metric = AcceptedLength()
    >>> metric.update({"prompt_key": 7, "accepted": [1, 3, 0, 2]})
    >>> metric.estimate().value
    1.5
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.accepted_length_counts`."""
        return F.accepted_length_counts(row)


class ForeseenLength(RowRatio):
    """The verifier's expected accepted length averaged over rounds, without coins: `sum_i P_i` for block verification.

    The analytic twin of `AcceptedLength`, and less noisy. Rounds that a stop token cut short count in full here.

    >>> metric = ForeseenLength()
    >>> metric.update({"prompt_key": 7, "foreseen": [1.25, 2.25]})
    >>> metric.estimate().value
    1.75
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.foreseen_length_counts`."""
        return F.foreseen_length_counts(row)


class OptimalAcceptance(RowRatio):
    """The most that any rule could have accepted of a tree's siblings, averaged over the tested places.

    The value of the optimal transport between the target's law and the siblings' (Sun et al. 2023; Hu et al. 2025): no
    rule that decides node by node exceeds it. Traversal, which decides whole paths, may. Rows of chains, and of
    distinct siblings, for whom no closed form is known, do not count.

    >>> metric = OptimalAcceptance()
    >>> metric.update({"prompt_key": 7, "tested": [2, 2], "optimum": [1.75, 1.25]})
    >>> metric.estimate().value
    0.75
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.optimal_acceptance_counts`."""
        return F.optimal_acceptance_counts(row)


class TotalVariationFromTarget(RowRatio):
    """TV between the law that a lossy rule emits and the target's, averaged over tested tokens; in [0, 1].

    A closed form of both laws, without sampling noise. Rows without it (lossless rules; rules that state no law, such
    as MARS; trees) do not count.

    >>> metric = TotalVariationFromTarget()
    >>> metric.update({"prompt_key": 7, "tested": [2, 2], "total_variation": [0.25, 0.75]})
    >>> metric.estimate().value
    0.25
    """

    higher_is_better = False

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.total_variation_from_target_counts`."""
        return F.total_variation_from_target_counts(row)


class KLFromTarget(RowRatio):
    """KL(emitted || target) of a lossy rule in nats, averaged over tested tokens; rows count as for TV.

    NaN over at least one prompt where it is infinite: the rule emits what the target never would, as nearly any lossy
    rule does at target temperature 0.

    >>> metric = KLFromTarget()
    >>> metric.update({"prompt_key": 7, "tested": [2, 2], "kl": [0.5, 1.5]})
    >>> metric.estimate().value
    0.5
    >>> metric.update({"prompt_key": 8, "tested": [1], "kl": [float("inf")]})
    >>> metric.estimate()
    Estimate(value=nan, low=nan, high=nan, prompts=2)
    """

    higher_is_better = False

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.kl_from_target_counts`."""
        return F.kl_from_target_counts(row)


class BlockEfficiency(RowRatio):
    """Emitted tokens / target calls, the bonus or correction token of each round included; 1 for plain decoding.

    >>> metric = BlockEfficiency()
    >>> metric.update({"prompt_key": 7, "tokens": [5, 6, 7, 8, 9], "drafted": [2, 2]})
    >>> metric.estimate().value
    2.5
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.block_efficiency_counts`."""
        return F.block_efficiency_counts(row)


class MBSU(RowRatio):
    """Memory-bound speed-up: block efficiency / (c K + 1), K the mean number of tokens drafted per round.

    The speed-up of a machine whose time goes into reading weights. As one ratio: emitted tokens / (target calls + c
    times drafted tokens).

    Args:
        parameter_ratio: c, the draft's parameters over the target's.
        replicates: bootstrap replicates.
        kwargs: torchmetrics' own options.

    >>> metric = MBSU(parameter_ratio=0.25)
    >>> metric.update({"prompt_key": 7, "tokens": [5, 6, 7, 8, 9, 10], "drafted": [4, 4]})
    >>> metric.estimate().value
    1.5
    """

    def __init__(self, parameter_ratio: float, *, replicates: int = REPLICATES, **kwargs: Any) -> None:
        super().__init__(replicates=replicates, **kwargs)
        self.parameter_ratio = parameter_ratio

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.mbsu_counts`."""
        return F.mbsu_counts(row, self.parameter_ratio)


class ByPosition(RowRatio):
    """A ratio per position of the round.

    Args:
        longest: K, the most tokens that a round drafts.
        replicates: bootstrap replicates.
        kwargs: torchmetrics' own options.
    """

    first = 1
    """The position that the first entry stands for."""

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

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.conditional_acceptance_counts`."""
        return F.conditional_acceptance_counts(row, self.longest)


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

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.accepted_length_histogram_counts`."""
        return F.accepted_length_histogram_counts(row, self.longest)


class TokensPerSecond(RowRatio):
    """Emitted tokens / seconds of wall clock, the prefill included.

    >>> metric = TokensPerSecond()
    >>> seconds = {"seconds_prefill": 0.5, "seconds_draft": 0.5, "seconds_verify": 1.0, "seconds_overhead": 0.0}
    >>> metric.update({"prompt_key": 7, "tokens": [5, 6, 7, 8], **seconds})
    >>> metric.estimate().value
    2.0
    """

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.tokens_per_second_counts`."""
        return F.tokens_per_second_counts(row)


class OverheadShare(RowRatio):
    """Seconds spent outside the models' forward passes / all seconds: sampling, verdicts and the engine's bookkeeping.

    >>> metric = OverheadShare()
    >>> seconds = {"seconds_prefill": 0.5, "seconds_draft": 0.5, "seconds_verify": 0.75, "seconds_overhead": 0.25}
    >>> metric.update({"prompt_key": 7, **seconds})
    >>> metric.estimate().value
    0.125
    """

    higher_is_better = False

    def counts(self, row: DecodedRow) -> F.Counts:
        """See `tempspec.metrics.functional.overhead_share_counts`."""
        return F.overhead_share_counts(row)


def speedup(fast: TokensPerSecond, plain: TokensPerSecond) -> Estimate:
    """Tokens per second against plain decoding of the same prompts by the same engine at the same batch size; paired.

    Raises:
        ValueError: the prompts differ.
    """
    return paired_ratio(fast, plain)


def longest_draft(rows: Iterable[DecodedRow]) -> int:
    """The most tokens that any round of these rows drafted."""
    return max((drafted for row in rows for drafted in row["drafted"]), default=0)
