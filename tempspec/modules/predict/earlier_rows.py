"""Rows that an earlier version decoded, with other columns, or of models known by less than their weights (floor 5)."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tempspec.errors import UserError
from tempspec.files import replacing
from tempspec.metrics.rows import former_columns, todays_columns
from tempspec.models.digests import of_earlier_version

__all__ = ["refuse_earlier_rows", "rename_columns"]

_ROWS = 1024
"""Rows that are in memory at a time."""


def refuse_earlier_rows(folder: Path, name: str) -> None:
    """Refuse to add to rows whose weights cannot be compared with today's; a report of them can still be made.

    Args:
        folder: the stage's folder.
        name: stem of the files with rows.

    Raises:
        UserError: saying what they are, and the remedy.
    """
    if not any((folder / f"{name}.{kind}").exists() for kind in ("parquet", "parts")):
        return
    try:
        held = json.loads((folder / f"{name}.origin.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or what the row store refuses
        return
    if isinstance(held, dict) and any(of_earlier_version(str(held.get(entry))) for entry in ("target", "draft")):
        raise UserError(
            f"{folder} holds rows of an earlier version of tempspec, which knew models by the ends of their files: "
            "its report can still be made; to decode, choose another --run folder or rename this one"
        )


def rename_columns(path: Path) -> str:
    """Write a file of rows again with today's columns, if it has others; returns a line that says so, or none.

    A file that cannot be read is left to whoever needs its rows.
    """
    try:
        names = pq.read_schema(path).names
    except pa.ArrowInvalid:
        return ""
    if said := former_columns(names):
        with pq.ParquetFile(path) as file, replacing(path) as partial:
            schema = file.schema_arrow.empty_table().rename_columns(todays_columns(names)).schema
            with pq.ParquetWriter(partial, schema) as writer:
                for batch in file.iter_batches(_ROWS):
                    writer.write_batch(batch.rename_columns(schema.names))
    return said
