"""Rows of Parquet files that a stage left, those of an earlier version under today's columns (floor 5)."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tempspec.errors import UserError
from tempspec.metrics.rows import DecodedRow, former_columns, todays_columns

__all__ = ["decoded_rows", "parquet_rows"]

_NEEDED = {
    *("key", "pass", "verifier", "prompt_set", "prompt_key"),
    *("tokens", "drafted", "tested", "accepted", "expected_acceptance"),
}


def decoded_rows(file: Path) -> tuple[list[DecodedRow], list[str]]:
    """What predict decoded, and a line where an earlier version wrote it.

    Raises:
        UserError: the file is broken, or lacks a column.
    """
    table = _table(file)
    said = former_columns(table.column_names)
    return _rows(file, table.rename_columns(todays_columns(table.column_names)), _NEEDED), [said] if said else []


def parquet_rows(file: Path, needed: set[str]) -> list[dict[str, Any]]:
    """The rows of a file that has at least these columns.

    Raises:
        UserError: the file is broken, or lacks a column.
    """
    return _rows(file, _table(file), needed)


def _table(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: expected a Parquet file, got a broken one; run the stage again") from error


def _rows(file: Path, table: pa.Table, needed: set[str]) -> Any:
    missing = sorted(needed - set(table.column_names))
    if missing:
        raise UserError(f"{file}: expected the column {missing[0]}, got a file of another version; run it again")
    return table.to_pylist()
