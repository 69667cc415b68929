"""From a corpus in normal form to training rows: packing, prompt masking, truncation, and an account of what was lost.

A row is a dictionary with `input_ids`, `loss_mask` (True where the token is a target of the loss), the
`generation_temperature` (NaN unknown) and a `key` (the bootstrap cluster: one a prompt, or one a packed block).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import datasets

from tempspec.data.digest import key_of_ids
from tempspec.data.encoding import Encoder
from tempspec.data.sources import TEMPERATURE, Source, form_of, messages_of
from tempspec.errors import UserError
from tempspec.models.identity import tokenizer_digest

EncodedRow = dict[str, Any]
_TEXTS_AT_ONCE = 256


@dataclass
class Report:
    """What became of a corpus.

    Attributes:
        read: rows of the corpus.
        rows: training rows made of them.
        tokens: tokens in those.
        truncated: rows cut to the maximum length.
        dropped: rows left out because no target of the loss was left.
    """

    read: int = 0
    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        """One line for the log.

        >>> str(Report(read=10, rows=8, tokens=900, truncated=3, dropped=2))
        '10 rows read, 8 kept with 900 tokens (3 truncated, 2 dropped: nothing left to learn from)'
        """
        lost = [f"{self.truncated} truncated"] * bool(self.truncated)
        lost += [f"{self.dropped} dropped: nothing left to learn from"] * bool(self.dropped)
        return f"{self.read} rows read, {self.rows} kept with {self.tokens} tokens" + (
            f" ({', '.join(lost)})" if lost else ""
        )

    def as_dict(self) -> dict[str, int]:
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


def encode_rows(
    dataset: datasets.Dataset, source: Source, encoder: Encoder, options: RowOptions, report: Report
) -> Iterator[EncodedRow]:
    """The training rows of a corpus, in its order; `report` counts them as they go by.

    Raises:
        UserError: a conversation that the chat template cannot take, with its row.
    """
    report.read += len(dataset)
    form = form_of(dataset)
    if form == "text":
        rows = _of_texts(dataset, encoder, options, report)
    elif form == "messages":
        rows = _of_conversations(dataset, source, encoder, options, report)
    else:
        rows = _of_pairs(dataset, source, encoder, options, report)
    for row in rows:
        report.rows += 1
        report.tokens += len(row["input_ids"])
        yield row


def pack(documents: Iterable[Sequence[int]], length: int, boundary: int | None = None) -> Iterator[list[int]]:
    """Join documents and cut the stream into blocks; nothing is lost, and the last block may be shorter.

    Documents are parted by the EOS that they end with and by nothing else: attention and positions run across it.

    Args:
        documents: token ids.
        length: the tokens of a block.
        boundary: a token that both ends and starts documents (BOS and EOS in one): it is not doubled where two meet.

    >>> list(pack([[1, 2, 0], [3, 4, 5, 0]], 4))
    [[1, 2, 0, 3], [4, 5, 0]]
    """
    block: list[int] = []
    for document in documents:
        position = 1 if block and block[-1] == document[0] == boundary else 0
        while position < len(document):
            taken = document[position : position + length - len(block)]
            block.extend(taken)
            position += len(taken)
            if len(block) == length:
                yield block
                block = []
    if block:
        yield block


def masked_row(
    ids: list[int], mask: list[bool], key: int, temperature: float | None, options: RowOptions, report: Report
) -> Iterator[EncodedRow]:
    """One row cut to the maximum length, or none where no target of the loss is left."""
    report.truncated += len(ids) > options.max_length
    ids, mask = ids[: options.max_length], [False, *mask[1 : options.max_length]]
    if not any(mask):
        report.dropped += 1
        return
    known = math.nan if temperature is None else temperature
    yield {"input_ids": ids, "loss_mask": mask, TEMPERATURE: known, "key": key}


def _of_texts(dataset: datasets.Dataset, encoder: Encoder, options: RowOptions, report: Report) -> Iterator[EncodedRow]:
    """Documents, packed or one a row. Only documents of one generation temperature share a block."""
    for temperature, part in _by_temperature(dataset):
        documents = _documents(part, encoder)
        if options.pack:
            documents = pack(documents, options.max_length, encoder.tokenizer.eos_token_id)
        for ids in documents:
            yield from masked_row(ids, [True] * len(ids), key_of_ids(ids), temperature, options, report)


def _by_temperature(dataset: datasets.Dataset) -> Iterator[tuple[float | None, datasets.Dataset]]:
    temperatures = _temperatures(dataset)
    order = sorted(range(len(dataset)), key=lambda index: (_sortable(temperatures[index]), index))
    for _, group in groupby(order, key=lambda index: _sortable(temperatures[index])):
        indices = list(group)
        yield temperatures[indices[0]], dataset.select(indices)


def _sortable(temperature: float | None) -> float:
    return -1.0 if temperature is None else temperature


def _temperatures(dataset: datasets.Dataset) -> list[float | None]:
    return list(dataset[TEMPERATURE]) if TEMPERATURE in dataset.column_names else [None] * len(dataset)


def _documents(dataset: datasets.Dataset, encoder: Encoder) -> Iterator[list[int]]:
    for batch in dataset.iter(_TEXTS_AT_ONCE):
        yield from encoder.documents(batch["text"])


def _of_pairs(
    dataset: datasets.Dataset, source: Source, encoder: Encoder, options: RowOptions, report: Report
) -> Iterator[EncodedRow]:
    exact = _has_ids_of(dataset, encoder)
    for batch in dataset.iter(_TEXTS_AT_ONCE):
        if exact:
            prompts, responses = batch["prompt_ids"], batch["response_ids"]
        else:
            prompts = encoder.prompts([prompt + source.separator for prompt in batch["prompt"]])
            responses = encoder.responses(batch["response"])
        temperatures = batch.get(TEMPERATURE, [None] * len(prompts))
        for prompt, response, temperature in zip(prompts, responses, temperatures, strict=True):
            mask = [False] * len(prompt) + [True] * len(response)
            yield from masked_row(prompt + response, mask, key_of_ids(prompt), temperature, options, report)


def _has_ids_of(dataset: datasets.Dataset, encoder: Encoder) -> bool:
    """Whether pairs carry the very tokens of this tokenizer: text encoded again need not give what was generated."""
    if "tokenizer" not in dataset.column_names:
        return False
    return set(dataset["tokenizer"]) == {tokenizer_digest(encoder.tokenizer)}


def _of_conversations(
    dataset: datasets.Dataset, source: Source, encoder: Encoder, options: RowOptions, report: Report
) -> Iterator[EncodedRow]:
    for number, row in enumerate(dataset, start=1):
        try:
            ids, mask = encoder.conversation(messages_of(row)[0])
        except ValueError as error:
            raise UserError(f"{source.path}: conversation {number}: {error}; repair or drop the row") from error
        first = mask.index(True) if True in mask else len(ids)
        yield from masked_row(ids, mask, key_of_ids(ids[:first]), row.get(TEMPERATURE), options, report)
