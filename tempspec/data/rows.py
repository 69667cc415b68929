"""From a corpus in normal form to training rows: prompt masking, truncation, packing, and what was lost (floor 5).

A row has `input_ids`, `loss_mask` (True where the token is a target of the loss), the `generation_temperature` (NaN
unknown), a `key` (the bootstrap cluster: one per prompt or packed block) and `starts` (the positions at which its
documents begin; 0 alone where it is one).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tempspec.data.digest import key_of_ids
from tempspec.data.encoding import Conversation, Encoder, PromptResponse
from tempspec.data.mapping import mapped
from tempspec.data.packing import Block, pack
from tempspec.data.readers import place_of
from tempspec.data.skipped import Skipped, Unusable
from tempspec.data.sources import FINISH, TEMPERATURE, Source, form_of, messages_of
from tempspec.errors import UserError
from tempspec.models.digests import tokenizer_digest
from tempspec.models.tokens import Encoded

EncodedRow = dict[str, Any]

BEYOND = "turns beyond data.max_length"
_ROWS_AT_ONCE = 1000
_TRIED = 32
"""Rows of a large corpus that are tried before all of it is encoded: a template may refuse every row."""

ROW = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        (TEMPERATURE, pa.float32()),
        ("key", pa.int64()),
        ("starts", pa.list_(pa.int32())),
    ]
)
"""The columns of a training row."""

_ACCOUNT = {
    "reason": pa.string(),  # why a row cannot be encoded, null where it can
    "first": pa.string(),  # its place and details
    "learned": pa.int32(),  # tokens that are targets of the loss
    "cut": pa.int32(),  # tokens beyond the maximum length
    "turns": pa.int32(),  # the assistant's
    "unlearned": pa.list_(pa.string()),  # the reason for every one that is not learned
}
MADE = pa.schema([*ROW, *_ACCOUNT.items()])
"""The columns of a row as it is made, with what the report counts."""


@dataclass
class EncodingReport:
    """What became of a corpus.

    Attributes:
        corpus: rows of the whole corpus, those that cannot be used included.
        read: rows of the side of it that is encoded.
        rows: training rows made of them.
        tokens: tokens in those.
        learned: tokens that are targets of the loss.
        turns: assistant turns in rows that were encoded.
        unlearned: turns of those that are not learned, by reason.
        truncated: rows cut to the maximum length.
        cut: tokens that these lost.
        dropped: rows left out because no target of the loss was left.
        skipped: rows that cannot be used, by reason.
        first: place and details of the first of them.
    """

    corpus: int = 0
    read: int = 0
    rows: int = 0
    tokens: int = 0
    learned: int = 0
    turns: int = 0
    unlearned: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    cut: int = 0
    dropped: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    first: str = ""

    def __str__(self) -> str:
        """One line for the log.

        >>> print(EncodingReport(read=10, rows=8, tokens=900, learned=640, truncated=3, cut=120, dropped=2))
        10 rows read, 8 kept with 900 tokens, 640 learned (3 truncated by 120 tokens; 2 dropped: nothing left to learn)
        >>> unlearned = {"turns with nothing to learn": 2}
        >>> print(EncodingReport(read=9, rows=9, tokens=90, learned=40, turns=7, unlearned=unlearned))
        9 rows read, 9 kept with 90 tokens, 40 learned in 5 of 7 assistant turns (2 turns with nothing to learn)
        """
        turns = f" in {self.turns - sum(self.unlearned.values())} of {self.turns} assistant turns"
        notes = [f"{self.truncated} truncated by {self.cut} tokens"] * bool(self.truncated)
        notes += [f"{self.dropped} dropped: nothing left to learn"] * bool(self.dropped)
        notes += [f"{count} {reason}" for reason, count in self.unlearned.items()]
        notes += [f"skipped: {self.unusable}"] * bool(self.skipped)
        return (
            f"{self.read} rows read, {self.rows} kept with {self.tokens} tokens, {self.learned} learned"
            + turns * bool(self.turns)
            + f" ({'; '.join(notes)})" * bool(notes)
        )

    @property
    def unusable(self) -> Skipped:
        """The rows that cannot be used."""
        return Skipped.of(self.skipped, self.first)

    def skip(self, skipped: Skipped) -> None:
        """Count rows that cannot be used."""
        both = self.unusable + skipped
        self.skipped, self.first = both.as_dict(), both.first

    def as_dict(self) -> dict[str, Any]:
        """The counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class RowOptions:
    """How rows are made.

    Args:
        max_length: the most tokens of a row, at least 2.
        pack: whether documents are joined to rows of exactly `max_length`; otherwise each is a row of its own.
    """

    max_length: int
    pack: bool = True


class RowMaker:
    """Makes rows of a batch of a corpus; picklable, for processes that encode.

    Args:
        dataset: the corpus, in normal form.
        source: where it is from.
        encoder: the tokenizer and its options.
        options: how rows are made.
    """

    def __init__(self, dataset: datasets.Dataset, source: Source, encoder: Encoder, options: RowOptions) -> None:
        self.form = form_of(dataset)
        self.packs = options.pack and self.form == "text"
        self.tokenizer = tokenizer_digest(encoder.tokenizer) if "tokenizer" in dataset.column_names else ""
        self.source, self.encoder, self.options = source, encoder, options

    def __call__(self, batch: dict[str, list[Any]], numbers: Sequence[int]) -> pa.Table:
        """The rows of a batch, `MADE`; documents that are to be packed are whole.

        Args:
            batch: values by column.
            numbers: the rows' numbers in the corpus, from 0 on.
        """
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        made = [
            self._skipped(number, row, encoded) if isinstance(encoded, Unusable) else self._made(row, *encoded)
            for number, row, encoded in zip(numbers, rows, self._encoded(rows), strict=True)
        ]
        return _table(made)

    def _encoded(self, rows: Sequence[EncodedRow]) -> list[tuple[Encoded, int] | Unusable]:
        """Every row with the number of its assistant turns, or why it cannot be encoded."""
        if self.form == "messages":
            conversations = [Conversation(*messages_of(row), ended=_ended(row)) for row in rows]
            return [
                each
                if isinstance(each, Unusable)
                else (each, sum(turn["role"] == "assistant" for turn in asked.messages))
                for asked, each in zip(conversations, self.encoder.conversations(conversations), strict=True)
            ]
        if self.form == "text":
            return [
                (each, 0) for each in self.encoder.pairs(PromptResponse("", row["text"], _ended(row)) for row in rows)
            ]
        # text encoded again need not give the tokens that were generated
        exact = [bool(self.tokenizer) and row["tokenizer"] == self.tokenizer for row in rows]
        others = (row for row, same in zip(rows, exact, strict=True) if not same)
        separator = self.source.separator
        encoded = iter(
            self.encoder.pairs(
                PromptResponse(row["prompt"] + separator, row["response"], _ended(row)) for row in others
            )
        )
        return [(_of_ids(row) if same else next(encoded), 0) for row, same in zip(rows, exact, strict=True)]

    def _made(self, row: EncodedRow, encoded: Encoded, turns: int) -> EncodedRow:
        """A row cut to the maximum length."""
        length = len(encoded.ids)
        most = length if self.packs else min(length, self.options.max_length)
        mask = np.zeros(most, dtype=bool)
        for begin, end in encoded.spans:
            mask[begin:end] = True
        mask[0] = False
        beyond = sum(begin >= most for begin, _ in encoded.spans) if turns else 0
        temperature = row.get(TEMPERATURE)
        return _NOTHING | {
            "input_ids": encoded.ids[:most],
            "loss_mask": mask,
            TEMPERATURE: np.nan if temperature is None else temperature,
            "key": 0 if self.packs else key_of_ids(encoded.ids if self.form == "text" else encoded.prompt),
            "learned": int(np.count_nonzero(mask)),
            "cut": length - most,
            "turns": turns,
            "unlearned": [*encoded.unlearned, *[BEYOND] * beyond],
        }

    def _skipped(self, number: int, row: EncodedRow, why: Unusable) -> EncodedRow:
        skipped = Skipped()
        skipped.add(why.reason, place_of(self.source.path, row.get("line", number + 1)), why.details)
        return _NOTHING | {"reason": why.reason, "first": skipped.first}


_NOTHING: EncodedRow = {
    "input_ids": np.empty(0, dtype=np.int32),
    "loss_mask": np.empty(0, dtype=bool),
    TEMPERATURE: np.nan,
    "key": 0,
    "starts": [0],
    "reason": None,
    "first": None,
    "learned": 0,
    "cut": 0,
    "turns": 0,
    "unlearned": [],
}


def encode_rows(
    dataset: datasets.Dataset,
    source: Source,
    encoder: Encoder,
    options: RowOptions,
    report: EncodingReport,
    workers: int | None = None,
    scratch: Path | None = None,
) -> Iterator[pa.Table]:
    """The training rows of a corpus, `ROW`, in its order; `report` counts them as they go by.

    Documents of different generation temperatures share no row: those of each follow those of the one before.

    Args:
        dataset: the corpus, in normal form.
        source: where it is from.
        encoder: the tokenizer and its options.
        options: how rows are made.
        report: counts.
        workers: processes; None chooses.
        scratch: a folder for what is not done yet.

    Raises:
        UserError: none of the first rows of a large corpus can be used: the others are not tried.
    """
    report.read += len(dataset)
    if not len(dataset):
        return
    maker = RowMaker(dataset, source, encoder, options)
    if len(dataset) > _ROWS_AT_ONCE:
        first = EncodingReport()
        _counted(maker(dataset[:_TRIED], range(_TRIED)), first)
        if first.unusable.total == _TRIED:
            raise UserError(f"{first.first}; so it is with the first {_TRIED} rows, and the others were not tried")
    with mapped(dataset, maker, f"encoding {source.path}", workers, scratch) as made:
        rows = _packed(made, encoder, options) if maker.packs else _tables(made)
        for table in rows:
            kept = _counted(table, report)
            if len(kept):
                yield kept


def _counted(made: pa.Table, report: EncodingReport) -> pa.Table:
    """Count rows as they were made; returns those with something to learn, `ROW`."""
    unusable = made.select(["reason", "first"]).filter(pc.is_valid(made["reason"]))
    for reason, first in zip(unusable["reason"].to_pylist(), unusable["first"].to_pylist(), strict=True):
        report.skip(Skipped(Counter([reason]), first))
    usable = _only(made, pc.is_null(made["reason"]))
    kept = _only(usable, pc.greater(usable["learned"], 0))
    unlearned = Counter(report.unlearned) + Counter(pc.list_flatten(usable["unlearned"]).to_pylist())
    report.unlearned = dict(unlearned)
    report.turns += _sum(usable["turns"])
    report.truncated += _sum(pc.greater(usable["cut"], 0))
    report.cut += _sum(usable["cut"])
    report.dropped += len(usable) - len(kept)
    report.rows += len(kept)
    report.tokens += _sum(pc.list_value_length(kept["input_ids"]))
    report.learned += _sum(kept["learned"])
    return kept.select(ROW.names).cast(ROW)


def _only(table: pa.Table, wanted: pa.ChunkedArray) -> pa.Table:
    """The rows that are wanted; lists of truths are slow to copy, and nearly always all are."""
    return table if pc.all(wanted).as_py() is not False else table.filter(wanted)


def _sum(values: pa.ChunkedArray) -> int:
    return int(pc.sum(values).as_py() or 0)


def _tables(made: datasets.Dataset) -> Iterator[pa.Table]:
    yield from made.with_format("arrow").iter(_ROWS_AT_ONCE)


def _packed(made: datasets.Dataset, encoder: Encoder, options: RowOptions) -> Iterator[pa.Table]:
    """Documents joined to rows, `MADE`, those of one temperature after those of another."""
    temperatures = np.asarray(made.with_format("numpy")[TEMPERATURE][:])
    for temperature in np.roll(np.unique(temperatures), int(np.isnan(temperatures).any())):  # the unknown first
        same = np.isnan(temperatures) if np.isnan(temperature) else temperatures == temperature
        part = made if same.all() else made.select(np.flatnonzero(same))
        documents = (ids for table in _tables(part) for ids in _lists(table["input_ids"]))
        blocks = pack(documents, options.max_length, encoder.tokenizer.eos_token_id)
        while rows := [_block_row(block, temperature) for block in islice(blocks, _ROWS_AT_ONCE)]:
            yield _table(rows)


def _block_row(block: Block, temperature: float) -> EncodedRow:
    return _NOTHING | {
        "input_ids": block.ids,
        "loss_mask": block.learned,
        TEMPERATURE: temperature,
        "key": key_of_ids(block.ids),
        "starts": block.starts,
        "learned": int(block.learned.sum()),
    }


def _lists(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """The lists of a column, as arrays."""
    for chunk in column.chunks:
        values, ends = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        for begin, end in pairwise(ends):
            yield values[begin:end]


def _table(rows: Sequence[EncodedRow]) -> pa.Table:
    return pa.table([_column([row[field.name] for row in rows], field.type) for field in MADE], schema=MADE)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of values; lists of numbers are joined without a Python object a number."""
    if not pa.types.is_list(kind) or pa.types.is_string(kind.value_type):
        return pa.array(values, kind)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    joined = np.concatenate(values, dtype=kind.value_type.to_pandas_dtype(), casting="same_kind")
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(joined, kind.value_type))


def _of_ids(row: EncodedRow) -> Encoded:
    """A pair whose very tokens are known."""
    ids = np.asarray([*row["prompt_ids"], *row["response_ids"]], dtype=np.int32)
    return Encoded(ids, [(len(row["prompt_ids"]), len(ids))])


def _ended(row: EncodedRow) -> bool:
    """Whether a text came to its end by itself; one that was cut says so."""
    return row.get(FINISH) != "length"
