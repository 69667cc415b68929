"""A folder of shards and a record of what they were made of: written in order, each whole or not at all (floor 5)."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from tempspec.decoding.pace import Pace, PassCounts
from tempspec.errors import UserError
from tempspec.files import replacing, write_atomically
from tempspec.models.digests import of_earlier_version

__all__ = [
    "CacheFolder",
    "CacheOrigin",
    "ShardRoom",
    "Watch",
    "counted_tokens",
    "paced",
    "record_of",
    "rows_digest",
    "size",
]

Row = TypeVar("Row")
Watch = Callable[[Pace], None]
"""Shows how far a cache is; called after every row."""

_SLACK = 1.02
"""The file format's own share of a shard."""


@dataclass(frozen=True)
class CacheOrigin:
    """What a cache was made of; fit must ask for the same.

    Attributes:
        text: a digest of the training rows.
        tokenizer: a digest of the tokenizer.
        rows: how many rows there are.
        tokens: their response tokens.
        vocabulary: V, the real ids.
        target: the target's folder or hub name.
        weights: a digest of its weights; empty where they are not at hand, and the target's name must do.
        seed: of the samples.
        apart: whether the documents of a packed row were kept from each other.
        served: the kind of server that told it, as `vLLM 0.32.0`; empty where the target's weights were read here.
    """

    text: str
    tokenizer: str
    rows: int
    tokens: int
    vocabulary: int = 0
    target: str = ""
    weights: str = ""
    seed: int = 0
    apart: bool = False
    served: str = ""


def rows_digest(rows: datasets.Dataset) -> tuple[str, int]:
    """A digest of encoded rows, and the number of tokens that the loss counts in them."""
    digest, tokens = hashlib.sha256(), 0
    for name in ("input_ids", "loss_mask"):
        for chunk in rows.data.column(name).chunks:
            values = chunk.flatten().to_numpy(zero_copy_only=False)
            digest.update(pc.list_value_length(chunk).to_numpy(zero_copy_only=False).tobytes() + values.tobytes())
            tokens += int(values.sum()) if name == "loss_mask" else 0
    return digest.hexdigest()[:16], tokens


@dataclass(frozen=True)
class CacheFolder:
    """Where a cache is.

    Attributes:
        path: the folder.
        kind: as options call it: `teacher` or `features`.
        title: as messages call it.
        suffix: of its shards.
        shard_rows: rows of a shard; an interrupted run loses at most so many.
    """

    path: Path
    kind: str
    title: str
    suffix: str
    shard_rows: int

    # -- writing ------------------------------------------------------------------------------------------------------

    def claim(self, record: Mapping[str, Any], rows: int, whole: int, remedy: str) -> None:
        """Begin a cache, or continue the same.

        Args:
            record: what it is of.
            rows: how many there will be.
            whole: their bytes.
            remedy: of a disk that is too small.

        Raises:
            UserError: the folder holds a cache of something else, or the disk is too small.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        held = self._read() if self._record.exists() else record
        changed = sorted(name for name in record if record[name] != held.get(name))
        if changed:
            raise UserError(
                f"{self.path} holds a {self.title} of another configuration (changed: {', '.join(changed)}): remove "
                f"it, or name another {self.kind}.folder"
            )
        free, left = shutil.disk_usage(self.path).free, self.bytes_left(rows, whole)
        if left > free:
            raise UserError(
                f"the {self.title} needs {size(left)} more in {self.path}, but the disk has {size(free)}: "
                f"{remedy}, or name another {self.kind}.folder"
            )
        write_atomically(self._record, json.dumps(record, indent=1))

    def begun(self, rows: int) -> int:
        """Rows that are written."""
        return min(len(self.shards()) * self.shard_rows, rows)

    def bytes_left(self, rows: int, whole: int) -> int:
        """About what is still to be written."""
        return int(_SLACK * (1 - self.begun(rows) / max(rows, 1)) * whole)

    def estimate(self, rows: int, tokens: int, whole: int) -> str:
        """What it will come to, in one line."""
        return (
            f"{self.title}: {rows} rows, {tokens} tokens, about {size(int(_SLACK * whole))} in {self.path}; "
            f"{self.begun(rows)} rows are there"
        )

    def write(self, rows: int, save: Callable[[Path, range], object]) -> None:
        """Write what is left; `save` writes the next rows, of these numbers, to a file."""
        for start in range(self.begun(rows), rows, self.shard_rows):
            count = min(self.shard_rows, rows - start)
            shard = self.path / f"shard-{start // self.shard_rows:06d}{self.suffix}"
            with replacing(shard) as file:
                save(file, range(start, start + count))

    # -- reading ------------------------------------------------------------------------------------------------------

    def shards(self) -> Sequence[Path]:
        """The finished ones, in their order."""
        return sorted(self.path.glob(f"shard-*{self.suffix}"))

    def finished(self, asked: Mapping[str, Any], options: Sequence[str]) -> Mapping[str, Any]:
        """The record of a whole cache.

        Args:
            asked: what it should be of.
            options: names of the record that must be as asked.

        Raises:
            UserError: there is none, it is unfinished, or it was made of something else.
        """
        held = self._read()
        for problem in self._differences(held, asked, options):
            raise UserError(f"the {self.title} in {self.path} {problem}")
        if (there := len(self.shards()) * self.shard_rows) < asked["rows"]:
            raise UserError(
                f"the {self.title} in {self.path} is unfinished ({there} of {asked['rows']} rows): run the same "
                f"`tempspec generate --cache-{self.kind}` again, which resumes where it stopped"
            )
        return held

    def _differences(self, held: Mapping[str, Any], asked: Mapping[str, Any], options: Sequence[str]) -> Iterator[str]:
        """Other rows, another tokenizer, another target, other options: each a reason not to take it."""
        if of_earlier_version(str(held.get("weights"))):
            yield (
                "is of an earlier version of tempspec, which knew its target by the ends of its files: cache it again"
            )
        reasons = {
            "tokenizer": "it was made with another tokenizer",
            "text": "it was made for another text (data.train, max_length or the held-out share differ)",
        }
        yield from (
            f"does not fit: {reason}; cache it again"
            for name, reason in reasons.items()
            if held.get(name) != asked[name]
        )
        known = "weights" if asked["weights"] and not held["served"] else "target"
        if held.get(known) != asked[known]:
            made, got = (f"{one.get('target')} ({one.get('weights') or 'no weights here'})" for one in (held, asked))
            yield (f"does not fit: it was made of the target {made}, got {got}; name that target, or cache it again")
        yield from (
            f"does not fit: its {name} is {held.get(name)}, expected {asked[name]}; cache it again, or take its own "
            "options"
            for name in options
            if held.get(name) != asked[name]
        )

    @property
    def _record(self) -> Path:
        return self.path / f"{self.kind}.json"

    def _read(self) -> Mapping[str, Any]:
        try:
            # Earlier versions let the documents of a row see each other and asked no server, and did not say so.
            found: dict[str, Any] = {"apart": False, "served": ""} | json.loads(self._record.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"there is no {self.title} in {self.path}: make it with `tempspec generate --cache-{self.kind}`"
            ) from error
        return found


def record_of(options: Any, origin: CacheOrigin) -> dict[str, Any]:
    """What a folder's record says: the options but its place, and what it was made of."""
    return {name: value for name, value in asdict(options).items() if name != "folder"} | asdict(origin)


class ShardRoom:
    """Room for what is kept of a shard's rows, in the host's memory, one row after the other; filled in any order.

    It is one piece. Tensors of each row, kept while large ones come and go between them, would leave holes in the heap
    that nothing fits in: gigabytes for a shard of some hundred megabytes.

    Args:
        count_R: the tokens of each row.

    >>> room = ShardRoom(np.array([1, 2]))
    >>> room.put(1, ids=torch.tensor([7, 8])), room.put(0, ids=torch.tensor([6]))
    (None, None)
    >>> room.parts["ids"], room.end_R
    (tensor([6, 7, 8]), [0, 1, 3])
    """

    def __init__(self, count_R: np.ndarray) -> None:
        self.end_R: list[int] = [0, *np.cumsum(count_R).tolist()]
        self.parts: dict[str, Tensor] = {}

    def put(self, row: int, **parts: Tensor) -> None:
        """Keep what a row has.

        Args:
            row: its number in the shard.
            parts: `[N, ...]` each, N the row's tokens.

        Raises:
            ValueError: it has another number of tokens.
        """
        begin, end = self.end_R[row : row + 2]
        for name, part in parts.items():
            if len(part) != end - begin:
                raise ValueError(f"row {row} of a shard: expected {end - begin} tokens of {name}, got {len(part)}")
            if name not in self.parts:
                self.parts[name] = torch.empty(self.end_R[-1], *part.shape[1:], dtype=part.dtype)
            self.parts[name][begin:end] = part


def counted_tokens(rows: datasets.Dataset) -> np.ndarray:
    """How many tokens the loss counts in each encoded row, `[R]`; nothing predicts the first one of a row.

    >>> counted_tokens(datasets.Dataset.from_dict({"loss_mask": [[True, False, True], [False, True], []]}))
    array([1, 1, 0])
    """
    found = [np.zeros(0, np.int64)]
    tables = rows.select_columns(["loss_mask"]).with_format("arrow").iter(10_000)
    for chunk in (chunk for table in tables for chunk in table.column("loss_mask").chunks):
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        end = pc.list_value_length(chunk).to_numpy(zero_copy_only=False).cumsum()
        begin = np.concatenate([[0], end[:-1]]).astype(np.int64)
        total = np.concatenate([[0], values.cumsum()])
        first = total[np.minimum(begin + 1, end)]
        found.append(total[end] - first)
    return np.concatenate(found)


def paced(rows: Iterator[Row], tokens: Callable[[Row], int], pace: Pace, watch: Watch | None) -> Iterator[Row]:
    """The same rows, counted as they are taken.

    Args:
        rows: what is kept of each.
        tokens: of one.
        pace: what counts.
        watch: shows it; None for nobody.
    """
    pace.start()
    seen = 0
    for number, row in enumerate(rows, 1):
        seen += tokens(row)
        pace.counts = PassCounts(number, seen, seen)
        if watch is not None:
            watch(pace)
        yield row


def size(count: int) -> str:
    """Bytes for a reader.

    >>> size(3_500_000), size(12)
    ('3.5 MB', '12 B')
    """
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count} B"
