"""Rows that survive any interruption: written part by part, merged into one Parquet file at the end (floor 5).

A part is written under another name and renamed, so it is there whole or not at all. A store remembers what its rows
were made from and refuses to continue with something else. Rows are never deleted. They are read by the columns that
are asked for, and merged a thousand at a time.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning.pytorch.utilities import rank_zero_info

from tempspec.errors import UserError
from tempspec.files import let_go, replacing, take_hold, write_atomically
from tempspec.modules.predict.earlier_rows import rename_columns

ROW_GROUP = 1024
"""Rows that are in memory at a time when parts are merged."""

StoredRow = Mapping[str, Any]

Origin = Mapping[str, str | Sequence[str]]


class OtherOrigin(UserError):
    """A folder holds rows of another configuration.

    Args:
        message: for the user.
        changed: the entries of the origin that differ.
    """

    def __init__(self, message: str, changed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.changed = tuple(changed)


class _Place(NamedTuple):
    """Where a row is: the number of its file, the row group, and its place in that."""

    file: int
    group: int
    row: int


class RowStore:
    """The rows of one run, in `FOLDER/NAME.parquet` when finished and in `FOLDER/NAME.parts/` until then.

    The first process holds the folder, until `finish` or its own end.

    Args:
        folder: the run's folder; made if missing.
        name: stem of the file.
        origin: what the rows are made from; a store whose entry of the same name differs is refused, new names are
            added. An entry may also be a sequence, of which either may be the beginning of the other.
        rank: this process's number; every process writes parts of its own, and the first alone checks and keeps the
            origin.

    Raises:
        UserError: the folder cannot be written, is in use, or holds rows of another origin.
    """

    def __init__(self, folder: str | Path, name: str, origin: Origin, rank: int = 0) -> None:
        self._final = Path(folder) / f"{name}.parquet"
        self._parts = Path(folder) / f"{name}.parts"
        self._origin = Path(folder) / f"{name}.origin.json"
        self._rank = rank
        if rank:
            return
        try:
            self._parts.parent.mkdir(parents=True, exist_ok=True)
            take_hold(self._parts.parent)
            self._claim(origin)
            self._rename_columns()
        except UserError:
            let_go(self._parts.parent)
            raise
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --run folder") from error

    @property
    def path(self) -> Path:
        """The finished file."""
        return self._final

    # -- origin -------------------------------------------------------------------------------------------------------

    def _claim(self, origin: Origin) -> None:
        begun = self._final.exists() or self._parts.exists()
        held = self._held_origin() if begun else {}
        merged = {key: merged_entry(held.get(key), entry) for key, entry in origin.items()}
        changed = sorted(key for key, entry in merged.items() if entry is None)
        if changed:
            raise OtherOrigin(
                f"{self._final.parent} holds rows of another configuration (changed: {', '.join(changed)}): choose "
                "another --run folder; these rows stay as they are",
                changed,
            )
        write_atomically(self._origin, json.dumps(held | merged, indent=1, sort_keys=True))

    def _held_origin(self) -> dict[str, Any]:
        """What the rows that are here were made from."""
        try:
            held = json.loads(self._origin.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(
                f"{self._final.parent} holds rows of an unknown origin (expected it in {self._origin.name}): choose "
                "another --run folder, or move the rows away"
            ) from error
        return held if isinstance(held, dict) else {}

    def _rename_columns(self) -> None:
        """Give rows of an earlier version today's columns, and say so in one line."""
        for line in sorted({line for path in self._files() if (line := rename_columns(path))}):
            rank_zero_info(f"{self._final.parent}: {line}")

    # -- reading ------------------------------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        """The keys of all rows so far, each once.

        Raises:
            UserError: a file holds none.
        """
        return list(self._places(self._files()))

    def values(self, column: str, keys: Collection[str]) -> dict[str, Any]:
        """One column of some rows, by key; of keys without a row nothing."""
        found: dict[str, Any] = {}
        for table in self.tables([column], keys) if keys else ():
            found |= zip(_listed(table["key"]), _listed(table[column]), strict=True)
        return found

    def tables(self, columns: Sequence[str], keys: Collection[str]) -> Iterator[pa.Table]:
        """Rows of these keys, some at a time: `key` and the given columns, as far as a file has them."""
        wanted = pa.array(sorted(keys), pa.string())
        for path in self._files():
            with _opened(path) as file:
                names = ["key", *(name for name in columns if name != "key" and name in file.schema_arrow.names)]
                for batch in _batches(file, names):
                    table = pa.Table.from_batches([batch]).select(names)
                    kept = table.filter(pc.is_in(table["key"], value_set=wanted))
                    if kept.num_rows:
                        yield kept

    @property
    def finished(self) -> int:
        """The rows of the finished file."""
        return int(pq.read_metadata(self._final).num_rows)

    def count(self, column: str, keys: Collection[str]) -> tuple[int, int]:
        """How many rows of these keys there are, and the entries of their lists in a column."""
        rows = entries = 0
        for table in self.tables([column], keys):
            rows += table.num_rows
            entries += pc.sum(pc.list_value_length(table[column])).as_py() or 0
        return rows, entries

    def distinct(self, column: str) -> list[Any]:
        """The values that a column has, in order; of a finished store."""
        return sorted(value for value in _listed(pq.read_table(self._final, columns=[column])[column].unique()))

    def rows(self, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Whole rows, in the order of these keys, or all of them; for few rows."""
        found = {row["key"]: row for path in self._files() for row in _read(path).to_pylist()}
        return list(found.values()) if keys is None else [found[key] for key in keys if key in found]

    def _files(self) -> list[Path]:
        return [*([self._final] if self._final.exists() else []), *sorted(self._parts.glob("*.parquet"))]

    def _places(self, files: Sequence[Path]) -> dict[str, _Place]:
        """Where each row is; of a key that is there twice, the later one."""
        found: dict[str, _Place] = {}
        for number, path in enumerate(files):
            with _opened(path) as file:
                for group in range(file.num_row_groups):
                    keys = _listed(file.read_row_group(group, columns=["key"])["key"])
                    found |= {key: _Place(number, group, row) for row, key in enumerate(keys)}
        return found

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[StoredRow]) -> None:
        """Write rows as one more part; none make none."""
        if not rows:
            return
        self._parts.mkdir(exist_ok=True)
        with replacing(self._new_part()) as partial:
            pq.write_table(pa.Table.from_pylist(list(rows)), partial, row_group_size=ROW_GROUP)

    def finish(self, order: Sequence[str]) -> None:
        """Merge the parts into the final file and let go of the folder; the first process alone calls it.

        Rows come in the order of these keys; those of other sweeps that came to an end follow, as they were. Of a sweep
        that did not there are the rows that were done first, which are the short ones: no figure should count them.
        They wait in a part of their own for the run that continues it.
        """
        files = [self._in_small_groups(path) for path in self._files()] if self._parts.exists() else []
        if files:
            places = self._places(files)
            ended = self._places(files[:1]) if self._final.exists() else {}
            kept = dict.fromkeys([*(key for key in order if key in places), *ended])
            left = [key for key in places if key not in kept]
            waiting = self._new_part()
            _merge(
                files, [places[key] for key in left], waiting
            )  # first: the other takes the place of one of the files
            _merge(files, [places[key] for key in kept], self._final)
            for path in self._parts.iterdir():
                if path != waiting:
                    path.unlink()
        if not files or not left:
            shutil.rmtree(self._parts, ignore_errors=True)
        let_go(self._parts.parent)

    def _new_part(self) -> Path:
        """The name of one more part of this process."""
        numbers = [int(part.stem.partition("-")[2]) for part in self._parts.glob(f"{self._rank:04d}-*.parquet")]
        return self._parts / f"{self._rank:04d}-{max(numbers, default=-1) + 1:06d}.parquet"

    def _in_small_groups(self, path: Path) -> Path:
        """The file, or a copy of one from an earlier version whose row groups are too large to read one at a time."""
        with _opened(path) as file:
            groups = range(file.num_row_groups)
            if all(file.metadata.row_group(group).num_rows <= ROW_GROUP for group in groups):
                return path
            copy = self._parts / f".{path.name}.groups"
            with pq.ParquetWriter(copy, file.schema_arrow) as writer:
                for batch in _batches(file):
                    writer.write_batch(batch)
        return copy


def merged_entry(held: Any, entry: str | Sequence[str]) -> str | None:
    """What an origin's entry becomes; None where the two do not go together."""
    if isinstance(entry, str):
        return entry if held in (None, entry) else None
    now, before = " ".join(entry), str(held or "").split()
    if held == hashlib.sha256(now.encode()).hexdigest()[:16]:  # as earlier versions kept it
        return now
    longer, shorter = sorted((list(entry), before), key=len, reverse=True)
    return " ".join(longer) if longer[: len(shorter)] == shorter else None


def _opened(path: Path) -> pq.ParquetFile:
    """A file of rows.

    Raises:
        UserError: it is none.
    """
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no readable Parquet file: move it away, or choose another --run folder") from error
    if "key" not in file.schema_arrow.names:
        file.close()
        raise UserError(f"{path} holds rows without keys, which no run left: choose another --run folder")
    return file


def _batches(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows, some at a time; asked for one row group after the other, or Arrow would keep all it has read."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(ROW_GROUP, row_groups=[group], columns=columns)
        pa.default_memory_pool().release_unused()


def _read(path: Path) -> pa.Table:
    with _opened(path) as file:
        return file.read()


def _merge(files: Sequence[Path], places: Sequence[_Place], merged: Path) -> None:
    """Write the rows at these places as one file, some at a time; no file where there is none."""
    if not places:
        return
    schema = pa.unify_schemas([pq.read_schema(path) for path in files], promote_options="permissive")
    rest = iter(places)
    with replacing(merged) as partial, pq.ParquetWriter(partial, schema) as writer:
        while chunk := list(islice(rest, ROW_GROUP)):
            writer.write_table(_gathered(files, chunk, schema))
            pa.default_memory_pool().release_unused()


def _gathered(files: Sequence[Path], places: Sequence[_Place], schema: pa.Schema) -> pa.Table:
    """The rows at these places, in their order, with the columns of the schema."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for number, place in enumerate(places):
        wanted.setdefault((place.file, place.group), []).append(number)
    parts, order = [schema.empty_table()], []
    for (file, group), numbers in wanted.items():
        with _opened(files[file]) as opened:
            parts.append(opened.read_row_group(group).take([places[number].row for number in numbers]))
        order += numbers
    found = pa.concat_tables(parts, promote_options="permissive")
    rank = sorted(range(len(order)), key=order.__getitem__)
    return found.take(rank).cast(schema)


def _listed(column: pa.ChunkedArray) -> list[Any]:
    return cast(list[Any], column.to_pylist())
