"""A teacher on disk: a few logits of every token of the training rows, so that fit needs no target (floor 5).

`generate --cache-teacher` writes it shard by shard, each whole or not at all; fit reads it by the number of a row. A
cache knows which rows, tokenizer and target it was made of, and is refused for others.

Axes: B batch, T positions, N the rows' response tokens, K kept tokens, H temperatures, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tempspec.core.noise import fold, uniform
from tempspec.core.sparse import SparseLogits, draw, top_k
from tempspec.decoding.sweep import Temperatures
from tempspec.errors import UserError
from tempspec.interfaces import Kept
from tempspec.modules.fit.cache_folder import CacheFolder, CacheOrigin, ShardRoom, record_of

__all__ = ["CacheWriter", "CachedTeacher", "TeacherCache"]

_SCHEMA = pa.schema(
    [("token", pa.list_(pa.int32())), ("logit", pa.list_(pa.float32())), ("logsum", pa.list_(pa.float32()))]
)
_OPTIONS = ("keep", "tokens_kept", "temperatures", "drawn_at", "shard_rows")
"""What of a record must be as fit asks for it."""


@dataclass
class CachedTeacher:
    """What is kept of the target's logits: `tempspec generate --cache-teacher` writes it, fit learns from it.

    Args:
        folder: where the cache is.
        keep: the `top` logits with their tail as one cell, or `sampled` tokens.
        tokens: kept tokens of a position; as many as the vocabulary has are the whole distribution.
        temperatures: loss temperatures that the cache serves, above 0; top logits serve those between as well.
        drawn_at: the temperature that tokens are sampled at, one of `temperatures`.
        shard_rows: rows of a file; an interrupted run loses at most so many.

    Raises:
        UserError: an option is out of its range.
    """

    folder: str
    keep: Kept = "top"
    tokens: int = 64
    temperatures: Temperatures = field(default_factory=lambda: [0.5, 0.75, 1.0, 1.5, 2.0])
    drawn_at: float = 1.0
    shard_rows: int = 1024

    def __post_init__(self) -> None:
        """Refuse what could not be read back."""
        given = self.temperatures if isinstance(self.temperatures, list) else [self.temperatures]
        self.temperatures = sorted({float(temperature) for temperature in given})
        checks = (
            (self.tokens >= 1, "tokens", "1 or more", self.tokens),
            (self.shard_rows >= 1, "shard_rows", "1 or more", self.shard_rows),
            (
                bool(self.temperatures) and self.temperatures[0] > 0 and self.temperatures[-1] < math.inf,
                "temperatures",
                "above 0, at least one",
                self.temperatures,
            ),
            (
                self.keep == "top" or self.drawn_at in self.temperatures,
                "drawn_at",
                f"one of teacher.temperatures {self.temperatures}",
                self.drawn_at,
            ),
        )
        for fine, name, expected, got in checks:
            if not fine:
                raise UserError(f"teacher.{name} must be {expected}, got {got}")

    @property
    def place(self) -> CacheFolder:
        """Where it is, with `~` resolved."""
        return CacheFolder(Path(self.folder).expanduser(), "teacher", "cached teacher", ".arrow", self.shard_rows)

    @property
    def token_bytes(self) -> int:
        """Bytes of one response token."""
        return 8 * self.tokens + 4 * len(self.temperatures)

    def kept(self, logits_NV: Tensor, row: int, seed: int) -> SparseLogits:
        """What is kept of one row; samples are a function of the seed and the row."""
        logits_NV = logits_NV.float()
        if self.keep == "top":
            return top_k(logits_NV, self.tokens, self.temperatures)
        place_NK = torch.arange(len(logits_NV) * self.tokens).view(-1, self.tokens)
        return draw(uniform(int(fold(seed, row)), 4, place_NK), logits_NV, self.drawn_at, self.temperatures)


@dataclass
class CacheWriter:
    """Writes a cache, from where it stopped.

    Args:
        options: what is kept.
        origin: what it is made of.

    Raises:
        UserError: the folder holds a cache of something else, or the disk is too small.
    """

    options: CachedTeacher
    origin: CacheOrigin

    def __post_init__(self) -> None:
        """Claim the folder."""
        record = _record(self.options, self.origin)
        self.options.place.claim(record, self.origin.rows, self._bytes, "lower teacher.tokens")

    @property
    def _bytes(self) -> int:
        return self.origin.tokens * self.options.token_bytes

    @property
    def begun(self) -> int:
        """Rows that are written."""
        return self.options.place.begun(self.origin.rows)

    def __str__(self) -> str:
        """The estimate, in one line."""
        return self.options.place.estimate(self.origin.rows, self.origin.tokens, self._bytes)

    def write(self, rows: Iterator[tuple[int, SparseLogits]], count_R: np.ndarray) -> None:
        """Write what is left.

        Args:
            rows: the numbers of those that are not written yet and what is kept of each, shard by shard; within a
                shard in any order.
            count_R: the response tokens of every row.
        """

        def save(file: Path, members: range) -> None:
            room = ShardRoom(count_R[members.start : members.stop])
            for number, kept in islice(rows, len(members)):
                room.put(
                    number - members.start,
                    token=kept.token_NK.int(),
                    logit=kept.logit_NK.float(),
                    logsum=kept.logsum_NH.float(),
                )
            _arrow(file, _table(room))

        self.options.place.write(self.origin.rows, save)


class TeacherCache:
    """A finished cache, read by the numbers of rows.

    Args:
        options: where it is, and what it should hold.
        origin: the rows, the tokenizer and the target of this run; what it does not say (vocabulary) is the cache's.

    Raises:
        UserError: there is none, it is unfinished, or it was made of something else.
    """

    def __init__(self, options: CachedTeacher, origin: CacheOrigin) -> None:
        self.options = options
        held = options.place.finished(_record(options, origin), _OPTIONS)
        shards = options.place.shards()
        self.vocabulary = int(held["vocabulary"])
        self.apart = bool(held["apart"])
        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(shard)) for shard in shards])
        self._rows = rows.with_format("arrow")  # Python's own numbers would cost more than the loss

    def __call__(self, row_B: Tensor, weight_B: Tensor) -> SparseLogits:
        """The teacher at all response tokens of a batch's rows, fillers left out."""
        numbers = row_B[weight_B > 0].tolist()
        kept = self._rows[numbers] if numbers else _SCHEMA.empty_table()
        width = min(self.options.tokens, self.vocabulary)
        width = width if self.options.keep == "top" else self.options.tokens
        token, logit, logsum = (
            torch.tensor(kept.column(name).combine_chunks().flatten().to_numpy(), dtype=dtype, device=row_B.device)
            for name, dtype in zip(_SCHEMA.names, (torch.int64, torch.float32, torch.float32), strict=True)
        )
        return SparseLogits(
            token.view(-1, width),
            logit.view(-1, width),
            logsum.view(-1, len(self.options.temperatures)),
            tuple(self.options.temperatures),
            self.options.drawn_at if self.options.keep == "sampled" else None,
        )

    @property
    def whole(self) -> bool:
        """Whether every token is kept: then every divergence is exact."""
        return self.options.keep == "top" and self.options.tokens >= self.vocabulary


def _record(options: CachedTeacher, origin: CacheOrigin) -> dict[str, Any]:
    return record_of(options, origin) | {"tokens_kept": options.tokens}


def _table(room: ShardRoom) -> pa.Table:
    """The rows of a shard; no number of theirs becomes an object of Python's."""
    columns = []
    for name in _SCHEMA.names:
        part_NX = room.parts[name]
        ends = pa.array([end * part_NX.shape[1] for end in room.end_R], pa.int32())
        columns.append(pa.ListArray.from_arrays(ends, pa.array(part_NX.flatten().numpy())))
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _arrow(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
