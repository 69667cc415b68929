"""The decoding metrics over rows, one written definition each, and their collection over a sweep (floor 4).

Every metric is token-weighted: a ratio of two sums over rows, with a 95% interval from a bootstrap over prompts. What
is counted is in `tempspec.metrics.functional`; a class here is such a function plus its remembered options.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tempspec.interfaces import BASELINE
from tempspec.metrics import functional as F
from tempspec.metrics.bootstrap import (
    REPLICATES,
    Estimate,
    Sums,
    bootstrap_compute,
    difference_estimate,
    quotient,
    same_prompts,
)
from tempspec.metrics.ratio import BootstrapRatio, paired_ratio, to_estimate
from tempspec.metrics.rows import Cell, Row, cell_of

__all__ = [
    "MBSU",
    "AcceptanceRate",
    "AcceptedLength",
    "AcceptedLengthHistogram",
    "AnalyticAcceptance",
    "BlockEfficiency",
    "ConditionalAcceptance",
    "DecodingMetrics",
    "DraftAcceptance",
    "ForeseenLength",
    "JointAcceptance",
    "KLFromTarget",
    "OverheadShare",
    "RowRatio",
    "SweepMetrics",
    "TokensPerSecond",
    "TotalVariationFromTarget",
    "compare",
    "speedup",
]


class RowRatio(BootstrapRatio):
    """A ratio of sums over rows; a subclass says what one row counts."""

    higher_is_better = True

    @abstractmethod
    def counts(self, row: Row) -> F.Counts:
        """Numerators and denominators of one row, one number an entry."""

    def update(self, *rows: Row) -> None:
        """Count requests; many at once are much cheaper than one by one."""
        counts_N2S = torch.tensor([self.counts(row) for row in rows], dtype=torch.float64, device=self.device)
        key_N = torch.tensor([row["prompt_key"] for row in rows], device=self.device)
        self.add(counts_N2S[:, 0], counts_N2S[:, 1], key_N)


class AcceptanceRate(RowRatio):
    """Accepted / tested: Leviathan's alpha, the chance that a draft token whose forerunners stand is accepted.

    Leviathan, Kalman and Matias 2023, definition 3.1. A token behind a rejection is not tested and does not count.

    >>> metric = AcceptanceRate()
    >>> metric.update({"prompt_key": 7, "drafted": [3, 3], "tested": [2, 3], "accepted": [1, 3]})
    >>> metric.estimate().value
    0.8
    """

    def counts(self, row: Row) -> F.Counts:
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

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.analytic_acceptance_counts`."""
        return F.analytic_acceptance_counts(row)


class DraftAcceptance(RowRatio):
    """Accepted / drafted: what serving engines print. At most the acceptance rate: tokens behind a rejection count.

    >>> metric = DraftAcceptance()
    >>> metric.update({"prompt_key": 7, "drafted": [4, 4], "accepted": [1, 3]})
    >>> metric.estimate().value
    0.5
    """

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.draft_acceptance_counts`."""
        return F.draft_acceptance_counts(row)


class AcceptedLength(RowRatio):
    """Accepted / rounds: draft tokens accepted per round, the bonus or correction token excluded.

    >>> metric = AcceptedLength()
    >>> metric.update({"prompt_key": 7, "accepted": [1, 3, 0, 2]})
    >>> metric.estimate().value
    1.5
    """

    def counts(self, row: Row) -> F.Counts:
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

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.foreseen_length_counts`."""
        return F.foreseen_length_counts(row)


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

    def counts(self, row: Row) -> F.Counts:
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

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.kl_from_target_counts`."""
        return F.kl_from_target_counts(row)


class BlockEfficiency(RowRatio):
    """Emitted tokens / target calls, the bonus or correction token of each round included; 1 for plain decoding.

    >>> metric = BlockEfficiency()
    >>> metric.update({"prompt_key": 7, "tokens": [5, 6, 7, 8, 9], "drafted": [2, 2]})
    >>> metric.estimate().value
    2.5
    """

    def counts(self, row: Row) -> F.Counts:
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

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.mbsu_counts`."""
        return F.mbsu_counts(row, self.parameter_ratio)


class _ByPosition(RowRatio):
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

    def update(self, *rows: Row) -> None:
        """Count requests.

        Raises:
            ValueError: a round drafted more than `longest` tokens.
        """
        if (got := longest_draft(rows)) > self.longest:
            raise ValueError(
                f"{type(self).__name__} expected rounds of at most {self.longest} drafted tokens, got {got}"
            )
        super().update(*rows)


class ConditionalAcceptance(_ByPosition):
    """Acceptance at position i = 1..K given that all earlier ones were accepted: accepted / tested there.

    >>> metric = ConditionalAcceptance(longest=2)
    >>> metric.update({"prompt_key": 7, "drafted": [2, 2, 2], "tested": [1, 2, 2], "accepted": [0, 1, 2]})
    >>> [round(estimate.value, 3) for estimate in metric.estimates()]
    [0.667, 0.5]
    """

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.conditional_acceptance_counts`."""
        return F.conditional_acceptance_counts(row, self.longest)


class JointAcceptance(_ByPosition):
    """The chance that positions 1..i are all accepted, out of the rounds that drafted position i = 1..K.

    >>> metric = JointAcceptance(longest=2)
    >>> metric.update({"prompt_key": 7, "drafted": [2, 2, 1, 2], "accepted": [0, 1, 1, 2]})
    >>> [round(estimate.value, 3) for estimate in metric.estimates()]
    [0.75, 0.333]
    """

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.joint_acceptance_counts`."""
        return F.joint_acceptance_counts(row, self.longest)


class AcceptedLengthHistogram(_ByPosition):
    """The share of rounds that accepted exactly j = 0..K tokens; sums to 1.

    >>> metric = AcceptedLengthHistogram(longest=2)
    >>> metric.update({"prompt_key": 7, "drafted": [2, 2, 2, 2], "accepted": [0, 1, 2, 2]})
    >>> [estimate.value for estimate in metric.estimates()]
    [0.25, 0.25, 0.5]
    """

    first = 0

    def counts(self, row: Row) -> F.Counts:
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

    def counts(self, row: Row) -> F.Counts:
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

    def counts(self, row: Row) -> F.Counts:
        """See `tempspec.metrics.functional.overhead_share_counts`."""
        return F.overhead_share_counts(row)


def speedup(fast: TokensPerSecond, plain: TokensPerSecond) -> Estimate:
    """Tokens per second against plain decoding of the same prompts by the same engine at the same batch size; paired.

    Raises:
        ValueError: the prompts differ.
    """
    return paired_ratio(fast, plain)


def longest_draft(rows: Iterable[Row]) -> int:
    """The most tokens that any round of these rows drafted."""
    return max((drafted for row in rows for drafted in row["drafted"]), default=0)


class DecodingMetrics(nn.Module):
    """All decoding metrics of one cell.

    Rows of the acceptance pass feed all but tokens per second and the overhead's share, which the timing pass feeds
    alone: a batched request's seconds say nothing about its latency.

    Args:
        longest: the most tokens that a round drafts.
        parameter_ratio: the draft's parameters over the target's, None where no draft model is used (no MBSU).
        replicates: bootstrap replicates.
    """

    def __init__(self, longest: int, parameter_ratio: float | None = None, replicates: int = REPLICATES) -> None:
        super().__init__()
        self.acceptance_rate = AcceptanceRate(replicates=replicates)
        self.analytic_acceptance = AnalyticAcceptance(replicates=replicates)
        self.draft_acceptance = DraftAcceptance(replicates=replicates)
        self.accepted_length = AcceptedLength(replicates=replicates)
        self.foreseen_length = ForeseenLength(replicates=replicates)
        self.block_efficiency = BlockEfficiency(replicates=replicates)
        self.total_variation_from_target = TotalVariationFromTarget(replicates=replicates)
        self.kl_from_target = KLFromTarget(replicates=replicates)
        self.conditional_acceptance = ConditionalAcceptance(longest, replicates=replicates)
        self.joint_acceptance = JointAcceptance(longest, replicates=replicates)
        self.accepted_length_share = AcceptedLengthHistogram(longest, replicates=replicates)
        self.mbsu = None if parameter_ratio is None else MBSU(parameter_ratio, replicates=replicates)
        self.tokens_per_second = TokensPerSecond(replicates=replicates)
        self.overhead_share = OverheadShare(replicates=replicates)

    def update(self, *rows: Row) -> None:
        """Count requests of this cell."""
        for pass_ in {row["pass"] for row in rows}:
            members = [row for row in rows if row["pass"] == pass_]
            for metric in self.of_pass(pass_):
                metric.update(*members)

    def of_pass(self, pass_: str) -> list[RowRatio]:
        """The metrics that rows of a pass feed."""
        metrics = [metric for metric in self.children() if isinstance(metric, RowRatio)]
        timed = TokensPerSecond, OverheadShare
        return [metric for metric in metrics if isinstance(metric, timed) == (pass_ == "timing")]

    def scalars(self) -> dict[str, RowRatio]:
        """The metrics of one number, by name."""
        named = {name: metric for name, metric in self.named_children() if isinstance(metric, RowRatio)}
        return {name: metric for name, metric in named.items() if not isinstance(metric, _ByPosition)}

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate by name. A collective under DDP: every rank must call it.

        Metrics by position have their position behind their name (`joint_acceptance_3`); positions that no round
        reached are left out. `acceptance_gap` is the acceptance rate minus its analytic twin, paired.
        """
        found = {name: metric.estimate() for name, metric in self.scalars().items()}
        found["acceptance_gap"] = _difference(self.acceptance_rate.sums(), self.analytic_acceptance.sums())
        for name, metric in self.named_children():
            if isinstance(metric, _ByPosition):
                entries = enumerate(metric.estimates(), start=metric.first)
                found |= {f"{name}_{position}": estimate for position, estimate in entries if estimate.prompts}
        return found


class SweepMetrics(nn.Module):
    """The metrics of every cell of a sweep. Cells are declared, because ranks see different ones and must agree.

    Args:
        cells: the cells that rows may belong to, the same on every rank; repetitions mean nothing.
        longest: the most tokens that a round of any cell drafts.
        parameter_ratio: the draft's parameters over the target's, None where no draft model is used.
        replicates: bootstrap replicates.
        cell: the cell of a row: `category_cell_of` tells the categories of a set apart.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        *,
        longest: int,
        parameter_ratio: float | None = None,
        replicates: int = REPLICATES,
        cell: Callable[[Row], Cell] = cell_of,
    ) -> None:
        super().__init__()
        self._cell = cell
        self.cells = tuple(dict.fromkeys(cells))
        self.metrics = nn.ModuleList(DecodingMetrics(longest, parameter_ratio, replicates) for _ in self.cells)
        self._of_cell = {cell: index for index, cell in enumerate(self.cells)}

    def __getitem__(self, cell: Cell) -> DecodingMetrics:
        """The metrics of a declared cell."""
        metrics = self.metrics[self._of_cell[cell]]
        assert isinstance(metrics, DecodingMetrics)
        return metrics

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._of_cell

    @classmethod
    def of_rows(
        cls,
        rows: Sequence[Row],
        *,
        parameter_ratio: float | None = None,
        rank: int = 0,
        world: int = 1,
        cell: Callable[[Row], Cell] = cell_of,
    ) -> "SweepMetrics":
        """The metrics of a finished sweep; under DDP every rank counts its share of the same rows.

        Args:
            rows: all rows, in the same order on every rank.
            parameter_ratio: the draft's parameters over the target's, None where no draft model is used.
            rank: this process's number.
            world: the number of processes.
            cell: the cell of a row.
        """
        metrics = cls(map(cell, rows), longest=longest_draft(rows), parameter_ratio=parameter_ratio, cell=cell)
        metrics.update(*rows[rank::world])
        return metrics

    def update(self, *rows: Row) -> None:
        """Count requests, new or replayed from disk.

        Raises:
            ValueError: a row's cell was not declared.
        """
        by_cell: dict[Cell, list[Row]] = {}
        for row in rows:
            by_cell.setdefault(self._cell(row), []).append(row)
        for cell, members in by_cell.items():
            if cell not in self:
                raise ValueError(f"expected a row of one of the {len(self.cells)} declared cells, got {cell}")
            self[cell].update(*members)

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The plain decoding of the same prompts at the same target temperature, if declared."""
        plain = replace(cell, verifier=BASELINE, draft_temperature=cell.target_temperature)
        return plain if plain in self else None

    def estimates(self) -> dict[Cell, dict[str, Estimate]]:
        """Every estimate of every cell, `speedup` included where plain decoding was timed on the same prompts.

        A collective under DDP: every rank must call it.
        """
        found = {cell: self[cell].estimates() for cell in self.cells}
        for cell in self.cells:
            if (sums := self.speedup_sums(cell)) is not None:
                found[cell]["speedup"] = to_estimate(bootstrap_compute(sums))[0]
        return found

    def speedup_sums(self, cell: Cell) -> Sums | None:
        """Tokens per second over those of plain decoding; None where it was not timed on the same prompts."""
        plain = self.baseline_of(cell)
        if plain is None or plain == cell:
            return None
        fast_sums, plain_sums = (self[which].tokens_per_second.sums() for which in (cell, plain))
        return quotient(fast_sums, plain_sums) if same_prompts(fast_sums, plain_sums) else None

    def scalar_sums(self, cell: Cell) -> dict[str, Sums]:
        """The sums of every metric of one number, for paired comparisons with another sweep."""
        found = {name: metric.sums() for name, metric in self[cell].scalars().items()}
        timed = self.speedup_sums(cell)
        return found if timed is None else found | {"speedup": timed}


def compare(before: SweepMetrics, after: SweepMetrics) -> dict[Cell, dict[str, Estimate]]:
    """Paired differences `after - before` of every metric of one number, in the cells that both sweeps declare.

    Where the two runs did not count the same prompts, the difference is `Estimate.nothing()`. A collective under DDP.
    """
    return {cell: _compare_cell(before, after, cell) for cell in before.cells if cell in after}


def _compare_cell(before: SweepMetrics, after: SweepMetrics, cell: Cell) -> dict[str, Estimate]:
    old, new = before.scalar_sums(cell), after.scalar_sums(cell)
    return {name: _difference(new[name], old[name]) for name in old if name in new}


def _difference(a: Sums, b: Sums) -> Estimate:
    """The paired difference, or nothing where the prompts differ."""
    return to_estimate(difference_estimate(a, b))[0] if same_prompts(a, b) else Estimate.nothing()
