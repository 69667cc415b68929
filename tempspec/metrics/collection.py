"""The decoding metrics of a whole sweep: all of them in every cell, and two sweeps compared (floor 4)."""

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from tempspec.metrics.bootstrap import (
    REPLICATES,
    Estimate,
    Sums,
    bootstrap_compute,
    difference_estimate,
    paired_quotient,
    same_prompts,
)
from tempspec.metrics.by_position import (
    AcceptedLengthHistogram,
    ByPosition,
    ConditionalAcceptance,
    JointAcceptance,
    longest_draft,
)
from tempspec.metrics.decoding import (
    MBSU,
    AcceptanceRate,
    AcceptedLength,
    AnalyticAcceptance,
    BlockEfficiency,
    DraftAcceptance,
    ExpectedLength,
    KLFromTarget,
    OptimalAcceptance,
    OverheadShare,
    RowRatio,
    TokensPerSecond,
    TotalVariationFromTarget,
)
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import Cell, DecodedRow, at_slots, cell_of, timed_together
from tempspec.metrics.timing import TimingPlaces, baseline_cell, places_of

__all__ = ["DecodingMetrics", "SweepMetrics", "compare"]

_OF_ONE_NUMBER: dict[str, type[RowRatio]] = {
    "acceptance_rate": AcceptanceRate,
    "analytic_acceptance": AnalyticAcceptance,
    "draft_acceptance": DraftAcceptance,
    "accepted_length": AcceptedLength,
    "expected_length": ExpectedLength,
    "block_efficiency": BlockEfficiency,
    "optimal_acceptance": OptimalAcceptance,
    "total_variation_from_target": TotalVariationFromTarget,
    "kl_from_target": KLFromTarget,
}
_BY_POSITION: dict[str, type[ByPosition]] = {
    "conditional_acceptance": ConditionalAcceptance,
    "joint_acceptance": JointAcceptance,
    "accepted_length_share": AcceptedLengthHistogram,
}
_OF_TIMING: dict[str, type[RowRatio]] = {"tokens_per_second": TokensPerSecond, "overhead_share": OverheadShare}
"""What rows of the timing pass feed; those of the acceptance pass feed all others. Summaries keep these orders."""


class DecodingMetrics(nn.Module):
    """All decoding metrics of one cell.

    Rows of the acceptance pass feed all but tokens per second and the overhead's share, which the timing pass feeds
    alone, those of each of its batch sizes under a name of their own: see `at_slots`.

    Args:
        longest: the most tokens that a round drafts.
        parameter_ratio: the draft's parameters over the target's, None where no draft model is used (no MBSU).
        replicates: bootstrap replicates.
        timing_slots: the batch sizes of the timing pass.
    """

    def __init__(
        self,
        longest: int,
        parameter_ratio: float | None = None,
        replicates: int = REPLICATES,
        timing_slots: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        self.timing_slots = tuple(timing_slots)
        for name, of_one_number in _OF_ONE_NUMBER.items():
            self.add_module(name, of_one_number(replicates=replicates))
        for name, by_position in _BY_POSITION.items():
            self.add_module(name, by_position(longest, replicates=replicates))
        self.mbsu = None if parameter_ratio is None else MBSU(parameter_ratio, replicates=replicates)
        self._of_acceptance = [name for name, _ in self.named_children()]
        for slots in self.timing_slots:
            for name, of_timing in _OF_TIMING.items():
                self.add_module(at_slots(name, slots), of_timing(replicates=replicates))

    def update(self, *rows: DecodedRow) -> None:
        """Count requests of this cell."""
        timed: dict[int, list[DecodedRow]] = {}
        untimed: list[DecodedRow] = []
        for row in rows:
            members = timed.setdefault(timed_together(row), []) if row["pass"] == "timing" else untimed
            members.append(row)
        if untimed:
            for name in self._of_acceptance:
                getattr(self, name).update(*untimed)
        for slots, members in timed.items():
            for name in _OF_TIMING:
                self.timed(name, slots).update(*members)

    def __getattr__(self, name: str) -> RowRatio:
        metric = super().__getattr__(name)
        assert isinstance(metric, RowRatio)  # nn.Module cannot tell what it holds
        return metric

    def timed(self, name: str, slots: int) -> RowRatio:
        """A metric of the timing pass at one of its batch sizes."""
        return getattr(self, at_slots(name, slots))

    def scalars(self) -> dict[str, RowRatio]:
        """The metrics of one number, by name."""
        return {name: getattr(self, name) for name, _ in self.named_children() if name not in _BY_POSITION}

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate by name. A collective under DDP: every rank must call it.

        The name of a metric by position ends with the position (`joint_acceptance_3`); positions that no round
        reached are left out. `acceptance_gap` is the acceptance rate minus its analytic counterpart, paired.
        """
        found = {name: metric.estimate() for name, metric in self.scalars().items()}
        found["acceptance_gap"] = _difference(self.acceptance_rate.sums(), self.analytic_acceptance.sums())
        for name, metric in _BY_POSITION.items():
            entries = enumerate(getattr(self, name).estimates(), start=metric.first)
            found |= {f"{name}_{position}": estimate for position, estimate in entries if estimate.prompts}
        return found


class SweepMetrics(nn.Module):
    """The metrics of every cell of a sweep. Cells are declared, because ranks see different ones and must agree.

    Args:
        cells: the cells that rows may belong to, the same on every rank; repetitions mean nothing.
        longest: the most tokens that a round of any cell drafts.
        parameter_ratio: the draft's parameters over the target's, None where no draft model is used.
        replicates: bootstrap replicates.
        cell: the cell of a row: `category_cell_of` has one for each category of a set.
        timing_slots: the batch sizes of the timing pass.
        places: where all rows were timed, those of other ranks, too; all on one machine where it is left out.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        *,
        longest: int,
        parameter_ratio: float | None = None,
        replicates: int = REPLICATES,
        cell: Callable[[DecodedRow], Cell] = cell_of,
        timing_slots: Sequence[int] = (1,),
        places: TimingPlaces | None = None,
    ) -> None:
        super().__init__()
        self.timing_slots = tuple(timing_slots)
        self.places = TimingPlaces() if places is None else places
        self._cell = cell
        self.cells = tuple(dict.fromkeys(cells))
        self.metrics = nn.ModuleList(
            DecodingMetrics(longest, parameter_ratio, replicates, timing_slots) for _ in self.cells
        )
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
        rows: Sequence[DecodedRow],
        *,
        parameter_ratio: float | None = None,
        rank: int = 0,
        world: int = 1,
        cell: Callable[[DecodedRow], Cell] = cell_of,
    ) -> "SweepMetrics":
        """The metrics of a finished sweep; under DDP every rank counts its share of the same rows.

        Args:
            rows: all rows, in the same order on every rank.
            parameter_ratio: the draft's parameters over the target's, None where no draft model is used.
            rank: this process's number.
            world: the number of processes.
            cell: the cell of a row.
        """
        metrics = cls(
            map(cell, rows),
            longest=longest_draft(rows),
            parameter_ratio=parameter_ratio,
            cell=cell,
            timing_slots=sorted({timed_together(row) for row in rows if row["pass"] == "timing"} or {1}),
            places=places_of((cell(row), row) for row in rows),
        )
        metrics.update(*rows[rank::world])
        return metrics

    def alone(self) -> "SweepMetrics":
        """These metrics for one process that counts all rows: no estimate is a collective any more."""
        for metric in self.modules():
            if isinstance(metric, RowRatio):
                metric.sync_on_compute = False
        return self

    def update(self, *rows: DecodedRow) -> None:
        """Count requests, new or replayed from disk.

        Raises:
            ValueError: a row's cell was not declared.
        """
        by_cell: dict[Cell, list[DecodedRow]] = {}
        for row in rows:
            by_cell.setdefault(self._cell(row), []).append(row)
        for cell, members in by_cell.items():
            if cell not in self:
                raise ValueError(f"expected a row of one of the {len(self.cells)} declared cells, got {cell}")
            self[cell].update(*members)

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The plain decoding of the same prompts at the same target temperature, if declared."""
        plain = baseline_cell(cell)
        return plain if plain in self else None

    def estimates(self) -> dict[Cell, dict[str, Estimate]]:
        """Every estimate of every cell, `speedup` included where plain decoding was timed on the same prompts.

        A collective under DDP: every rank must call it.
        """
        found = {cell: self[cell].estimates() for cell in self.cells}
        for cell in self.cells:
            for name, sums in self.speedup_sums(cell).items():
                found[cell][name] = to_estimate(bootstrap_compute(sums))[0]
        return found

    def speedup_sums(self, cell: Cell) -> dict[str, Sums]:
        """Speed-ups by name, one per batch size: tokens per second over those of plain decoding at the same size.

        Without those that were not timed on the same prompts, and each prompt on the same machine.
        """
        plain = self.baseline_of(cell)
        if plain is None or plain == cell:
            return {}
        found = {}
        for slots in self.timing_slots:
            fast, slow = (self[which].timed("tokens_per_second", slots).sums() for which in (cell, plain))
            if same_prompts(fast, slow) and self.places.comparable(cell, slots):
                found[at_slots("speedup", slots)] = paired_quotient(fast, slow)
        return found

    def scalar_sums(self, cell: Cell) -> dict[str, Sums]:
        """The sums of every metric of one number, for paired comparisons with another sweep."""
        found = {name: metric.sums() for name, metric in self[cell].scalars().items()}
        return found | self.speedup_sums(cell)


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
