"""What a YAML says about one corpus, and how its rows are read into one of a few normal forms (floor 5).

A row is `text`, or `prompt` with `response`, or `messages` with perhaps `tools`; with `generation_temperature` where
the data carry it, and `line`, its number in its file. For prompt sets a row may also be `turns`, what a user says in a
conversation, and carry a `category`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import datasets
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from tempspec.data.columns import CATEGORY, EXACT, FINISH, TEMPERATURE, Shape, names_a_part, shape_of, unread_media
from tempspec.data.conversations import for_template
from tempspec.data.digest import digest_path, digest_value
from tempspec.data.hub_data import hub_commit, hub_rows
from tempspec.data.json_files import wrapped_rows
from tempspec.data.readers import READERS, Numbered, RawRow, numbered_rows, place_of, suffix_of
from tempspec.data.skipped import Skipped, Unusable
from tempspec.errors import UserError

__all__ = [
    "CATEGORY",
    "EXACT",
    "FINISH",
    "LINE",
    "TEMPERATURE",
    "Form",
    "Source",
    "form_of",
    "messages_of",
    "named_sources",
    "read",
    "source_digest",
    "source_of",
]

LINE = "line"
"""The column with a row's number in its file: the line in a file of lines, the row in any other."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TYPES = dict.fromkeys(("text", "prompt", "response", "messages", "tools", CATEGORY, FINISH, "tokenizer"), pa.string())
_TYPES |= {"turns": pa.list_(pa.string()), "prompt_ids": pa.list_(pa.int64()), "response_ids": pa.list_(pa.int64())}
_TYPES |= {TEMPERATURE: pa.float64(), LINE: pa.int64()}
_ROWS_AT_ONCE = 1000
_ROWS_LOOKED_AT = 1000
"""Rows at the beginning whose columns decide what the rows of a file are."""


@dataclass
class Source:
    """One corpus.

    Without column names the form is inferred from what the file has: `messages` or `conversations`, else `prompt` and
    `response`, else `instruction` and `output`, else `text`. A .txt file has one `text` row per paragraph (the
    lines between two blank ones). A .json file is a list of rows, an object with one such list in it, or JSON Lines.

    Where the prompt is the column `instruction`, as in Alpaca, and the row has an `input`, that follows it after a
    blank line.

    Args:
        path: a .jsonl, .jsonl.gz, .json, .parquet, .csv or .txt file, a folder saved by `datasets`, or a hub dataset's
            name.
        name: the configuration of a hub dataset.
        split: the split of a hub dataset.
        revision: the revision of a hub dataset: a branch, a tag or a commit.
        text: the column with documents.
        prompt: the column with prompts.
        response: the column with responses.
        messages: the column with conversations: lists of `{role, content}`, with tool calls and whatever else the chat
            template knows, or of `{from, value}`; the row's `tools` and `system` belong to them.
        separator: text put between prompt and response; it belongs to the prompt.
        limit: read only the first `limit` rows; all by default.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    separator: str = ""
    limit: int | None = None

    @property
    def file(self) -> Path:
        """The local path, with `~` resolved; it need not exist."""
        return Path(self.path).expanduser()


S = TypeVar("S", bound=Source)


def source_of(given: Source | str, kind: type[S]) -> S:
    """A source, of which the path may be all that is given.

    Raises:
        UserError: a text is meant to be options, and they could not be read.
    """
    if isinstance(given, kind):
        return given
    path = str(given)
    if path.lstrip()[:1] in ("{", "["):
        options = ", ".join(option.name for option in dataclasses.fields(kind))
        raise UserError(f"data: expected a path, or options out of {options}; got {path}; check their names")
    return kind(path)


def named_sources(given: Mapping[str, S | str] | None, kind: type[S]) -> dict[str, S]:
    """Sources by name; `NAME.path`, which is how a command line names the first option of a new set, names NAME.

    Raises:
        UserError: see `source_of`.
    """
    return {name.removesuffix(".path"): source_of(source, kind) for name, source in (given or {}).items()}


def read(
    source: Source,
    *,
    need_response: bool = True,
    cache_dir: str | Path | None = None,
    skipped: Skipped | None = None,
) -> datasets.Dataset:
    """Read a corpus.

    Columns `text`, or `prompt` and `response`, or `messages` (JSON text, see `messages_of`); always `line`; and of
    `tools`, `generation_temperature` and the exact ids of generated pairs what any row has.

    Args:
        source: what to read.
        need_response: whether a file with prompts alone is refused; otherwise `turns` will do, a response may be
            missing, and `category` is read.
        cache_dir: where a hub dataset is kept; `datasets`' own place by default.
        skipped: counts the rows that cannot be used, which are left out; the first one is an error by default. A caller
            checks it against the share that may be left out.

    Raises:
        UserError: a missing or empty file, an unknown column, no row that can be used, a separator without prompts, an
            unreachable hub; one line each.
    """
    rows = _raw_rows(source, cache_dir)
    head = list(islice(rows, _ROWS_LOOKED_AT))
    if not head:
        raise UserError(f"{source.path}: expected at least one row, got an empty file; check how it was written")
    head = _unwrapped(source, head)
    good = [row for _, row in head if not isinstance(row, Unusable)]
    if not good:
        _refuse_first(source, head)
    columnar = not source.file.exists() or source.file.is_dir() or suffix_of(source.file) == ".parquet"
    shape = shape_of(source, good, need_response=need_response, columnar=columnar)
    if media := unread_media(good):
        rank_zero_info(f"{source.path}: {', '.join(media)} is not read: placeholders such as <image> stay as text")
    table = _table(islice(_records(source, shape, chain(head, rows), skipped), source.limit), shape)
    if table.num_rows == 0:
        if skipped is not None and skipped.total:
            raise UserError(f"{skipped.first}; no row can be used ({skipped}): repair them, or name other columns")
        raise UserError(
            f"{source.path}: every row is blank or limit is 0, got no text; check the columns and the limit"
        )
    dataset = datasets.Dataset(table, fingerprint=uuid4().hex)  # the default is made by pickling the whole table
    if source.separator and (form := form_of(dataset)) != "pair":
        raise UserError(
            f"{source.path}: separator expected prompts, which it follows, got {form}; leave it out, or name the "
            "column with prompts as prompt"
        )
    return dataset


def messages_of(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The messages of a row that `read` returned, and the tools that they may call, as a chat template takes them.

    Messages are what the file says, with one exception: arguments of a call that are JSON text become the object that
    the text says, which templates expect (transformers, "Tool use") and serving engines hand them.
    """
    tools = row.get("tools")
    return for_template(json.loads(row["messages"])), None if tools is None else json.loads(tools)


def source_digest(source: Source, cache_dir: str | Path | None = None) -> str:
    """A digest of everything that decides what `read` returns, without parsing a file.

    Local files and folders count with their bytes, never with their name or date; hub data with their commit.
    """
    options = dataclasses.asdict(source) | {"path": None}
    if source.file.exists():
        return digest_value([options, suffix_of(source.file), digest_path(source.file)])
    _check_hub_name(source)
    return digest_value([options, source.path, hub_commit(source, cache_dir)])


def _raw_rows(source: Source, cache_dir: str | Path | None) -> Iterator[Numbered]:
    if source.limit is not None and source.limit < 1:
        raise UserError(f"{source.path}: limit must be 1 or more, got {source.limit}; leave it out to read all rows")
    if source.file.exists():
        return numbered_rows(source.file)
    _check_hub_name(source)
    return iter(enumerate(hub_rows(source, cache_dir), start=1))


def _check_hub_name(source: Source) -> None:
    if suffix_of(source.file) in READERS or not _HUB_NAME.fullmatch(source.path):
        raise UserError(f"{source.path}: no such file or folder; check data's path (it is relative to {Path.cwd()})")


def _unwrapped(source: Source, head: list[Numbered]) -> list[Numbered]:
    """The rows of a file that is one JSON object with a list of them in it; other rows as they are."""
    row = head[0][1]
    if len(head) > 1 or isinstance(row, Unusable) or suffix_of(source.file) != ".json" or names_a_part(source, row):
        return head
    return wrapped_rows(source.path, row) or head


def _refuse_first(source: Source, rows: Sequence[Numbered]) -> None:
    number, fault = rows[0]
    raise UserError(
        f"{place_of(source.path, number)}: {fault}; so are the first {len(rows)} rows: repair or convert them"
    )


def _records(source: Source, shape: Shape, rows: Iterator[Numbered], skipped: Skipped | None) -> Iterator[RawRow]:
    """Rows in normal form; those with a blank part are left out, and so are those that cannot be used."""
    for number, row in rows:
        try:
            if isinstance(row, Unusable):
                raise row
            record = shape.record(row)
        except Unusable as fault:
            place = place_of(source.path, number)
            if skipped is None:
                raise UserError(f"{place}: {fault}; repair or drop the row") from fault
            skipped.add(fault.reason, place, fault.details)
            continue
        if all(value for part, value in record.items() if part not in shape.optional):
            yield record | {LINE: number}


def _table(records: Iterator[RawRow], shape: Shape) -> pa.Table:
    """The records as one table, without the optional columns that hold nothing."""
    parts = dict.fromkeys(
        (*shape.columns, *(["tools"] if "messages" in shape.columns else []), TEMPERATURE, FINISH, *EXACT)
    )
    schema = pa.schema([(part, _TYPES[part]) for part in (*parts, LINE)])
    batches = []
    while chunk := list(islice(records, _ROWS_AT_ONCE)):
        batches.append(pa.RecordBatch.from_pylist(chunk, schema))
    table = pa.Table.from_batches(batches, schema)
    empty = [part for part in shape.optional if part in parts and table[part].null_count == table.num_rows]
    return table.drop_columns(empty)


Form = Literal["text", "pair", "messages", "turns"]


def form_of(dataset: datasets.Dataset) -> Form:
    """Which normal form a dataset that `read` returned has; prompts without responses are a `pair`."""
    forms: tuple[Form, ...] = ("text", "messages", "turns")
    return next((form for form in forms if form in dataset.column_names), "pair")
