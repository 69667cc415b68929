"""The metrics of a sweep from its rows on disk, some at a time, without texts and token ids (floor 5)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from tempspec.metrics.collection import SweepMetrics
from tempspec.metrics.rows import (
    METRIC_COLUMNS,
    PLACE_COLUMNS,
    Cell,
    DecodedRow,
    category_cell_of,
    cell_of,
    timed_together,
)
from tempspec.metrics.timing import TimingPlaces
from tempspec.modules.predict.row_store import RowStore

__all__ = ["round_rows", "sweep_metrics"]


def sweep_metrics(
    store: RowStore, keys: Sequence[str], parameter_ratio: float | None = None
) -> tuple[SweepMetrics, SweepMetrics]:
    """The metrics of the rows of these keys: by cell, and by cell and category of the rows that have one.

    One process computes them; no estimate is a collective.

    Args:
        store: finished.
        keys: those of the sweep; rows of other sweeps do not count.
        parameter_ratio: the draft's parameters over the target's, None where no draft model is used.
    """
    cells: dict[Cell, None] = {}
    named: dict[Cell, None] = {}
    longest, sizes, places = 0, set(), TimingPlaces()
    for table in store.tables([*PLACE_COLUMNS, "drafted"], keys):
        longest = max(longest, pc.max(pc.list_flatten(table["drafted"])).as_py() or 0)
        for row in _rows(table.drop_columns("drafted")):
            cells[cell_of(row)] = None
            places.add(cell_of(row), row)
            if row["category"]:
                named[category_cell_of(row)] = None
                places.add(category_cell_of(row), row)
            if row["pass"] == "timing":
                sizes.add(timed_together(row))

    def metrics(found: dict[Cell, None], cell: Callable[[DecodedRow], Cell]) -> SweepMetrics:
        made = SweepMetrics(
            found,
            longest=longest,
            parameter_ratio=parameter_ratio,
            cell=cell,
            timing_slots=sorted(sizes) or (1,),
            places=places,
        )
        return made.alone()

    whole, by_category = metrics(cells, cell_of), metrics(named, category_cell_of)
    for rows in _metric_rows(store, keys):
        whole.update(*rows)
        by_category.update(*(row for row in rows if row["category"]))
    return whole, by_category


def round_rows(store: RowStore, keys: Sequence[str]) -> Iterator[DecodedRow]:
    """The rows of these keys with what their rounds drafted and accepted.

    Args:
        store: finished.
        keys: those of the sweep.
    """
    for table in store.tables([*PLACE_COLUMNS, "finish", "drafted", "tested", "accepted"], keys):
        yield from _rows(table)


def _metric_rows(store: RowStore, keys: Sequence[str]) -> Iterator[list[DecodedRow]]:
    """Rows as metrics read them: of the tokens only their number counts, so a range replaces them."""
    for table in store.tables(METRIC_COLUMNS, keys):
        counts = pc.list_value_length(table["tokens"]).to_pylist()
        rows = _rows(table.drop_columns("tokens"))
        yield [cast(DecodedRow, row | {"tokens": range(count)}) for row, count in zip(rows, counts, strict=True)]


def _rows(table: pa.Table) -> list[Any]:
    """Rows without what is null: columns that rows of an earlier version lack."""
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
