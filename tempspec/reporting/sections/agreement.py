"""Whether what was accepted is what the models' distributions say, in every cell at once (floor 5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import FEWEST, Estimate, Sums
from tempspec.metrics.decoding import AcceptanceRate, AnalyticAcceptance
from tempspec.metrics.rows import Cell, DecodedRow, cell_of
from tempspec.reporting.answers import contrast
from tempspec.reporting.page_tables import Field, Sheet
from tempspec.reporting.runs import Collection
from tempspec.reporting.sections.common import Section

__all__ = ["Compared", "agreement", "compared", "in_words"]

_ROUNDING = 1e-9
"""Differences of equal sums are 0 but for rounding, and then have no width."""


@dataclass(frozen=True)
class Compared:
    """One cell of one draft.

    Attributes:
        draft: its name.
        cell: the cell.
        measured: accepted over tested tokens.
        analytic: the mean of what the verifier expected of the same tokens.
        gap: measured - analytic, with an interval that holds for all cells at once.
    """

    draft: str
    cell: Cell
    measured: Estimate
    analytic: Estimate
    gap: Estimate

    @property
    def agrees(self) -> bool:
        """Whether the interval has 0 in it."""
        return self.gap.low <= _ROUNDING and self.gap.high >= -_ROUNDING


def compared(collection: Collection) -> list[Compared]:
    """Every cell whose verifier said what it expected, on enough prompts for an interval."""
    found = [
        (draft.name, cell, _sums(AcceptanceRate(), rows), _sums(AnalyticAcceptance(), rows))
        for draft in collection.drafts
        for cell, rows in _cells(draft.rows)
        if len({row["prompt_key"] for row in rows}) >= FEWEST
    ]
    return [
        Compared(
            name,
            cell,
            contrast((1, measured)),
            contrast((1, analytic)),
            contrast((1, measured), (-1, analytic), among=len(found)),
        )
        for name, cell, measured, analytic in found
    ]


def in_words(found: Sequence[Compared]) -> str:
    """One sentence on all cells; empty where there are none."""
    if not found:
        return ""
    differing = [one for one in found if not one.agrees]
    widest = max((one.gap.high - one.gap.low) / 2 for one in found)
    kept = f"{len(found) - len(differing)} of {len(found)} cells"
    first = f", not in {_place(differing[0])}: {differing[0].gap:+}" if differing else ""
    return (
        f"measured and analytic acceptance agree in {kept} (95% intervals that hold for all at once, "
        f"at most ±{widest:.3f} wide){first}"
    )


def agreement(collection: Collection) -> Section:
    """The table of all cells, and the sentence on them."""
    found = compared(collection)
    rows: list[list[Field]] = [
        [
            one.draft,
            one.cell.prompt_set,
            one.cell.verifier,
            one.cell.target_temperature,
            one.cell.draft_temperature,
            one.measured,
            one.analytic,
            one.gap,
            "yes" if one.agrees else "no",
        ]
        for one in found
    ]
    columns = ["draft", "prompts", "verifier", "T", "draft T", "measured", "analytic", "difference", "agrees"]
    sheets = [Sheet("agreement", "Measured against analytic acceptance", columns, rows)] if rows else []
    said = in_words(found)
    text = f"{said[:1].upper()}{said[1:]}. Both are of the same drafted tokens."
    return Section("agreement", "Measured against analytic acceptance", text, [], sheets)


def _cells(rows: Sequence[DecodedRow]) -> Iterator[tuple[Cell, list[DecodedRow]]]:
    """The rows of each cell that have expected acceptances."""
    grouped: dict[Cell, list[DecodedRow]] = {}
    for row in rows:
        if row["pass"] == "acceptance" and row["verifier"] != BASELINE and row["expected_acceptance"]:
            grouped.setdefault(cell_of(row), []).append(row)
    yield from grouped.items()


def _sums(metric: AcceptanceRate | AnalyticAcceptance, rows: Sequence[DecodedRow]) -> Sums:
    metric.update(*rows)
    return metric.sums()


def _place(one: Compared) -> str:
    cell = one.cell
    return f"{one.draft}, {cell.prompt_set}, {cell.verifier}, T = {cell.target_temperature:g}"
