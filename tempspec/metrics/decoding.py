"""The decoding metrics over rows, one written definition each, as torchmetrics (floor 4).

Every metric is token-weighted: a ratio of two sums over rows, with a 95% interval from a bootstrap over prompts. A
class here is its definition in words, an example, and the two counts of `tempspec.metrics.counts` that it divides.
Those that have a number for every position are in `by_position`, all of them over a sweep in `collection`.

Axes: N rows, S entries of a metric, 1 or one per position.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tempspec.metrics.bootstrap import REPLICATES, Estimate
from tempspec.metrics.counts import Counts, Ratio, finite_total, number, seconds, total
from tempspec.metrics.ratio import BootstrapRatio, paired_ratio
from tempspec.metrics.rows import DecodedRow

__all__ = [
    "MBSU",
    "AcceptanceRate",
    "AcceptedLength",
    "AnalyticAcceptance",
    "BlockEfficiency",
    "DraftAcceptance",
    "ExpectedLength",
    "KLFromTarget",
    "OptimalAcceptance",
    "OverheadShare",
    "RowRatio",
    "TokensPerSecond",
    "TotalVariationFromTarget",
    "speedup",
]

_ALL_SECONDS = seconds("prefill", "draft", "verify", "overhead")


class RowRatio(BootstrapRatio):
    """A ratio of sums over rows. A subclass of one number names its `ratio`; another one says what a row `counts`."""

    higher_is_better = True
    ratio: ClassVar[Ratio]

    def counts(self, row: DecodedRow) -> Counts:
        """What one row adds to the sums."""
        return Counts([self.ratio.numerator(row)], [self.ratio.over(row)])

    def update(self, *rows: DecodedRow) -> None:
        """Count requests; many at once are much cheaper than one by one."""
        counts_N = [self.counts(row) for row in rows]
        key_N = torch.tensor([row["prompt_key"] for row in rows], dtype=torch.int64, device=self.device)
        self.add(
            self._table([counts.numerator_S for counts in counts_N]),
            self._table([counts.denominator_S for counts in counts_N]),
            key_N,
        )

    def _table(self, values_NS: Sequence[Sequence[float]]) -> Tensor:
        """These numbers as float64 `[N, S]`, also of no row."""
        table_NS = torch.tensor(values_NS, dtype=torch.float64, device=self.device)
        return table_NS.reshape(len(values_NS), len(self.numerator_SW))


class AcceptanceRate(RowRatio):
    """Accepted / tested: Leviathan's alpha, the chance that a draft token is accepted after all before it were.

    Leviathan, Kalman and Matias 2023, definition 3.1. A token after a rejection is not tested and does not count.

    >>> metric = AcceptanceRate()
    >>> metric.update({"prompt_key": 7, "drafted": [3, 3], "tested": [2, 3], "accepted": [1, 3]})
    >>> metric.estimate().value
    0.8
    """

    ratio = Ratio(total("accepted"), over=total("tested"))


class AnalyticAcceptance(RowRatio):
    """The verifier's expected acceptance averaged over tested tokens: `sum min(p, q)` for token-wise rejection.

    The analytic counterpart of `AcceptanceRate` over the same positions, without its sampling noise: their
    difference (`acceptance_gap` in `DecodingMetrics`) must cover 0. Rows without expected acceptances do not count.

    >>> metric = AnalyticAcceptance()
    >>> metric.update({"prompt_key": 7, "tested": [2, 3], "expected_acceptance": [1.25, 2.5]})
    >>> metric.estimate().value
    0.75
    """

    ratio = Ratio(total("expected_acceptance"), over=total("tested", where="expected_acceptance"))


class DraftAcceptance(RowRatio):
    """Accepted / drafted: what serving engines print. At most the acceptance rate: tokens after a rejection count.

    >>> metric = DraftAcceptance()
    >>> metric.update({"prompt_key": 7, "drafted": [4, 4], "accepted": [1, 3]})
    >>> metric.estimate().value
    0.5
    """

    ratio = Ratio(total("accepted"), over=total("drafted"))


class AcceptedLength(RowRatio):
    """Accepted / rounds: draft tokens accepted per round, the bonus or correction token excluded.

    >>> metric = AcceptedLength()
    >>> metric.update({"prompt_key": 7, "accepted": [1, 3, 0, 2]})
    >>> metric.estimate().value
    1.5
    """

    ratio = Ratio(total("accepted"), over=number("accepted"))


class ExpectedLength(RowRatio):
    """The verifier's expected accepted length averaged over rounds: `sum_i P_i` for block verification.

    `AcceptedLength` without its sampling noise. Rounds that a stop token cut short count in full here.

    >>> metric = ExpectedLength()
    >>> metric.update({"prompt_key": 7, "expected_length": [1.25, 2.25]})
    >>> metric.estimate().value
    1.75
    """

    ratio = Ratio(total("expected_length"), over=number("expected_length"))


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

    ratio = Ratio(total("optimum"), over=total("tested", where="optimum"))


class TotalVariationFromTarget(RowRatio):
    """TV between the distribution that a lossy rule emits and the target's, averaged over tested tokens; in [0, 1].

    A closed form of both laws, without sampling noise. Rows without it (lossless rules; rules that state no law, such
    as MARS; trees) do not count.

    >>> metric = TotalVariationFromTarget()
    >>> metric.update({"prompt_key": 7, "tested": [2, 2], "total_variation": [0.25, 0.75]})
    >>> metric.estimate().value
    0.25
    """

    higher_is_better = False

    ratio = Ratio(total("total_variation"), over=total("tested", where="total_variation"))


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

    ratio = Ratio(finite_total("kl"), over=total("tested", where="kl"))


class BlockEfficiency(RowRatio):
    """Emitted tokens / target calls, the bonus or correction token of each round included; 1 for plain decoding.

    >>> metric = BlockEfficiency()
    >>> metric.update({"prompt_key": 7, "tokens": [5, 6, 7, 8, 9], "drafted": [2, 2]})
    >>> metric.estimate().value
    2.5
    """

    ratio = Ratio(number("tokens"), over=number("drafted"))


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

    def counts(self, row: DecodedRow) -> Counts:
        """Emitted tokens, out of forward passes, the draft's counted as `parameter_ratio` of the target's."""
        passes = len(row["drafted"]) + self.parameter_ratio * sum(row["drafted"])
        return Counts([len(row["tokens"])], [passes])


class TokensPerSecond(RowRatio):
    """Emitted tokens / seconds of wall clock, the prefill included.

    >>> metric = TokensPerSecond()
    >>> seconds = {"seconds_prefill": 0.5, "seconds_draft": 0.5, "seconds_verify": 1.0, "seconds_overhead": 0.0}
    >>> metric.update({"prompt_key": 7, "tokens": [5, 6, 7, 8], **seconds})
    >>> metric.estimate().value
    2.0
    """

    ratio = Ratio(number("tokens"), over=_ALL_SECONDS)


class OverheadShare(RowRatio):
    """Seconds spent outside the models' forward passes / all seconds: sampling, verdicts and the engine's bookkeeping.

    >>> metric = OverheadShare()
    >>> seconds = {"seconds_prefill": 0.5, "seconds_draft": 0.5, "seconds_verify": 0.75, "seconds_overhead": 0.25}
    >>> metric.update({"prompt_key": 7, **seconds})
    >>> metric.estimate().value
    0.125
    """

    higher_is_better = False

    ratio = Ratio(seconds("overhead"), over=_ALL_SECONDS)


def speedup(fast: TokensPerSecond, plain: TokensPerSecond) -> Estimate:
    """Tokens per second against plain decoding of the same prompts by the same engine at the same batch size; paired.

    Raises:
        ValueError: the prompts differ.
    """
    return paired_ratio(fast, plain)
