"""Rows that survive any interruption: written part by part, merged into one Parquet file at the end (floor 5).

A part is written under another name and renamed, so it is there whole or not at all. A store remembers what its rows
were made from and refuses to continue with something else.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tempspec.errors import UserError
from tempspec.files import replacing, write_atomically

Row = Mapping[str, Any]


class RowStore:
    """The rows of one run, in `FOLDER/NAME.parquet` when finished and in `FOLDER/NAME.parts/` until then.

    Args:
        folder: the run's folder; made if missing.
        name: stem of the file.
        origin: JSON-ready description of what the rows are made from; a store whose entry of the same name differs is
            refused, new names are added.
        rank: this process's number; every process writes parts of its own, and the first the description.

    Raises:
        UserError: the folder cannot be written, or holds rows of another origin.
    """

    def __init__(self, folder: str | Path, name: str, origin: Mapping[str, Any], rank: int = 0) -> None:
        self._final = Path(folder) / f"{name}.parquet"
        self._parts = Path(folder) / f"{name}.parts"
        self._origin = Path(folder) / f"{name}.origin.json"
        self._rank = rank
        try:
            self._parts.parent.mkdir(parents=True, exist_ok=True)
            self._claim(json.loads(json.dumps(origin)))
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --run folder") from error

    @property
    def path(self) -> Path:
        """The finished file."""
        return self._final

    def _claim(self, origin: dict[str, Any]) -> None:
        begun = self._final.exists() or self._parts.exists()
        held = self._held_origin() if begun else {}
        changed = sorted(key for key in held.keys() & origin.keys() if held[key] != origin[key])
        if changed:
            raise UserError(
                f"{self._final.parent} holds rows of another configuration (changed: {', '.join(changed)}): "
                "remove it, or choose another --run folder"
            )
        if self._rank == 0:
            write_atomically(self._origin, json.dumps(held | origin, indent=1, sort_keys=True))

    def _held_origin(self) -> dict[str, Any]:
        """What the rows that are here were made from."""
        try:
            held = json.loads(self._origin.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(
                f"{self._final.parent} holds rows of an unknown origin (expected it in {self._origin.name}): "
                "remove it, or choose another --run folder"
            ) from error
        return held if isinstance(held, dict) else {}

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, each key once.

        Raises:
            UserError: a file holds none.
        """
        files = [self._final] if self._final.exists() else []
        files += sorted(self._parts.glob("*.parquet"))
        found = {row["key"]: row for file in files for row in _read_table(file)}
        return list(found.values())

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows as one more part; none make none."""
        if not rows:
            return
        self._parts.mkdir(exist_ok=True)
        number = len(list(self._parts.glob(f"{self._rank:04d}-*.parquet")))
        _write_table(rows, self._parts / f"{self._rank:04d}-{number:06d}.parquet")

    def finish(self, order: Sequence[str]) -> None:
        """Merge all parts into the final file, rows in the order of these keys; one process calls it.

        Rows whose key is not in `order` are dropped (a sweep whose interruption was followed by nothing keeps all).
        """
        if not self._parts.exists():
            return
        found = {row["key"]: row for row in self.rows()}
        _write_table([found[key] for key in order if key in found], self._final)
        shutil.rmtree(self._parts)


def _read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of one Parquet file."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no readable Parquet file: remove it, or choose another --run folder") from error
    if "key" not in table.column_names:
        raise UserError(f"{path} holds rows without keys, which no run left: choose another --run folder")
    return cast(list[dict[str, Any]], table.to_pylist())


def _write_table(rows: Sequence[Row], path: Path) -> None:
    """One Parquet file, whole or not at all."""
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(rows)), partial)
