"""A teacher on disk: a few logits of every token of the training rows, so that fit needs no target (floor 5).

`generate --cache-teacher` writes it shard by shard, each whole or not at all; fit reads it by the number of a row. A
cache knows which rows, tokenizer and target it was made of, and is refused for others.

Axes: B batch, T positions, N the rows' response tokens, K kept tokens, H temperatures, V vocabulary.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from tempspec.core.noise import fold, uniform
from tempspec.core.sparse import SparseLogits, draw, top_k
from tempspec.decoding.sweep import Temperatures
from tempspec.errors import UserError
from tempspec.files import replacing, write_atomically
from tempspec.interfaces import Kept
from tempspec.models.digests import of_earlier_version

__all__ = ["CacheWriter", "CachedTeacher", "TeacherCache", "TeacherOrigin", "rows_digest"]

RECORD = "teacher.json"
_SCHEMA = pa.schema(
    [("token", pa.list_(pa.int32())), ("logit", pa.list_(pa.float32())), ("logsum", pa.list_(pa.float32()))]
)
_SLACK = 1.02
"""Arrow's own share of a shard."""


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
    def path(self) -> Path:
        """The folder, with `~` resolved."""
        return Path(self.folder).expanduser()

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


@dataclass(frozen=True)
class TeacherOrigin:
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


def rows_digest(rows: datasets.Dataset) -> tuple[str, int]:
    """A digest of encoded rows, and the number of tokens that the loss counts in them."""
    digest, tokens = hashlib.sha256(), 0
    for name in ("input_ids", "loss_mask"):
        for chunk in rows.data.column(name).chunks:
            values = chunk.flatten().to_numpy(zero_copy_only=False)
            digest.update(pc.list_value_length(chunk).to_numpy(zero_copy_only=False).tobytes() + values.tobytes())
            tokens += int(values.sum()) if name == "loss_mask" else 0
    return digest.hexdigest()[:16], tokens


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
    origin: TeacherOrigin

    def __post_init__(self) -> None:
        """Claim the folder."""
        folder, record = self.options.path, _record(self.options, self.origin)
        folder.mkdir(parents=True, exist_ok=True)
        held = _read_record(folder) if (folder / RECORD).exists() else record
        changed = sorted(name for name in record if record[name] != held.get(name))
        if changed:
            raise UserError(
                f"{folder} holds a cached teacher of another configuration (changed: {', '.join(changed)}): remove it, "
                "or name another teacher.folder"
            )
        free = shutil.disk_usage(folder).free
        if self.bytes_left > free:
            raise UserError(
                f"the cached teacher needs {_size(self.bytes_left)} more in {folder}, but the disk has {_size(free)}: "
                "lower teacher.tokens, or name another teacher.folder"
            )
        write_atomically(folder / RECORD, json.dumps(record, indent=1))

    @property
    def begun(self) -> int:
        """Rows that are written."""
        return min(len(_shards(self.options.path)) * self.options.shard_rows, self.origin.rows)

    @property
    def bytes_left(self) -> int:
        """About what is still to be written."""
        share = 1 - self.begun / max(self.origin.rows, 1)
        return int(_SLACK * share * self.origin.tokens * self.options.token_bytes)

    def __str__(self) -> str:
        """The estimate, in one line."""
        whole = int(_SLACK * self.origin.tokens * self.options.token_bytes)
        return (
            f"cached teacher: {self.origin.rows} rows, {self.origin.tokens} tokens, about {_size(whole)} in "
            f"{self.options.path}; {self.begun} rows are there"
        )

    def write(self, rows: Iterator[SparseLogits]) -> None:
        """Write what is left; `rows` begins after those that are written."""
        folder, begun = self.options.path, self.begun
        for start in range(begun, self.origin.rows, self.options.shard_rows):
            count = min(self.options.shard_rows, self.origin.rows - start)
            shard = folder / f"shard-{start // self.options.shard_rows:06d}.arrow"
            with replacing(shard) as file:
                _arrow(file, _table(list(islice(rows, count))))


class TeacherCache:
    """A finished cache, read by the numbers of rows.

    Args:
        options: where it is, and what it should hold.
        origin: the rows, the tokenizer and the target of this run; what it does not say (vocabulary) is the cache's.

    Raises:
        UserError: there is none, it is unfinished, or it was made of something else.
    """

    def __init__(self, options: CachedTeacher, origin: TeacherOrigin) -> None:
        folder = options.path
        self.options = options
        held = _read_record(folder)
        _same(folder, held, _record(options, origin))
        shards = _shards(folder)
        if len(shards) * options.shard_rows < origin.rows:
            raise UserError(
                f"the cached teacher in {folder} is unfinished ({len(shards) * options.shard_rows} of {origin.rows} "
                "rows): run the same `tempspec generate --cache-teacher` again, which resumes where it stopped"
            )
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


def _same(folder: Path, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a cache of other rows, another tokenizer, another target, or other options."""
    if of_earlier_version(str(held.get("weights"))):
        raise UserError(
            f"the cached teacher in {folder} is of an earlier version of tempspec, which knew its target by the ends "
            "of its files: cache it again"
        )
    reasons = {
        "tokenizer": "it was made with another tokenizer",
        "text": "it was made for another text (data.train, max_length or the held-out share differ)",
    }
    for name, reason in reasons.items():
        if held.get(name) != asked[name]:
            raise UserError(f"the cached teacher in {folder} does not fit: {reason}; cache it again")
    known = "weights" if asked["weights"] else "target"
    if held.get(known) != asked[known]:
        made, got = (f"{one.get('target')} ({one.get('weights') or 'no weights here'})" for one in (held, asked))
        raise UserError(
            f"the cached teacher in {folder} does not fit: it was made of the target {made}, got {got}; name that "
            "target, or cache it again"
        )
    for name in ("keep", "tokens_kept", "temperatures", "drawn_at", "shard_rows"):
        if held.get(name) != asked[name]:
            raise UserError(
                f"the cached teacher in {folder} does not fit: its {name} is {held.get(name)}, expected {asked[name]}; "
                "cache it again, or take its own options"
            )


def _record(options: CachedTeacher, origin: TeacherOrigin) -> dict[str, Any]:
    own = asdict(options)
    own["tokens_kept"] = own.pop("tokens")
    return {name: value for name, value in own.items() if name != "folder"} | asdict(origin)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        # Earlier versions let the documents of a row see each other, and did not say so.
        found: dict[str, Any] = {"apart": False} | json.loads((folder / RECORD).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"there is no cached teacher in {folder}: make it with `tempspec generate --cache-teacher`"
        ) from error
    return found


def _shards(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def _table(rows: Sequence[SparseLogits]) -> pa.Table:
    """Rows of a shard; no number of theirs becomes an object of Python's."""
    columns = zip(*((row.token_NK.int(), row.logit_NK, row.logsum_NH) for row in rows), strict=True)
    return pa.Table.from_arrays([_lists(column) for column in columns], schema=_SCHEMA)


def _lists(parts: Sequence[Tensor]) -> pa.ListArray:
    """A list of each tensor's numbers, in order."""
    ends = list(accumulate((part.numel() for part in parts), initial=0))
    values = torch.cat([part.flatten() for part in parts]).cpu().numpy()
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values))


def _arrow(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _size(count: int) -> str:
    """Bytes for a reader.

    >>> _size(3_500_000), _size(12)
    ('3.5 MB', '12 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
