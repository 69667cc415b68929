"""What a YAML says about one corpus, and how its rows are read into one of three normal forms.

A row is `text`, or `prompt` with `response`, or `messages`; with `generation_temperature` where the data carry it. For
prompt sets a row may also be `turns`, what a user says in a conversation, and carry a `category`.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import datasets
import huggingface_hub.constants
import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tempspec.data.digest import digest_path, digest_value
from tempspec.data.readers import READERS, Row, rows_of_path, suffix_of
from tempspec.errors import UserError
from tempspec.models.hub import HUB_SECONDS

TEMPERATURE = "generation_temperature"
CATEGORY = "category"
EXACT = ("prompt_ids", "response_ids", "tokenizer")
"""Columns of generated data: the very tokens of a pair, and the digest of the tokenizer whose ids they are."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_TYPES = {"text": pa.string(), "prompt": pa.string(), "response": pa.string(), "messages": pa.list_(_MESSAGE)}
_TYPES |= {"turns": pa.list_(pa.string()), CATEGORY: pa.string()}
_TYPES |= {"prompt_ids": pa.list_(pa.int64()), "response_ids": pa.list_(pa.int64()), "tokenizer": pa.string()}
_FORMS = ("text", "prompt", "response", "messages", "turns")
_OPTIONAL = (TEMPERATURE, CATEGORY, *EXACT)
"""Columns that may hold nothing."""
_ROWS_AT_ONCE = 1000


@dataclass
class Source:
    """One corpus.

    Without column names the form is inferred from what the file has: `messages`, else `prompt` and `response`, else
    `text`. A .txt file has one `text` row a paragraph (the lines between two blank ones).

    Args:
        path: a .jsonl, .jsonl.gz, .json, .parquet, .csv or .txt file, a folder saved by `datasets`, or a hub dataset's
            name.
        name: the configuration of a hub dataset.
        split: the split of a hub dataset.
        revision: the revision of a hub dataset: a branch, a tag or a commit.
        text: the column with documents.
        prompt: the column with prompts.
        response: the column with responses.
        messages: the column with conversations, lists of `{role, content}`.
        separator: text put between prompt and response; it belongs to the prompt.
        limit: read at most so many rows, from the first on; all by default.
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


def read(source: Source, *, need_response: bool = True, cache_dir: str | Path | None = None) -> datasets.Dataset:
    """Read a corpus; columns `text`, or `prompt` and `response`, or `messages`, and the generation temperature.

    Args:
        source: what to read.
        need_response: whether a file with prompts alone is refused; otherwise `turns` will do, and `category` is read.
        cache_dir: where a hub dataset is kept; `datasets`' own place by default.

    Raises:
        UserError: a missing or empty file, an unknown column, a broken row, a separator without prompts, an unreachable
            hub; one line each.
    """
    rows = _raw_rows(source, cache_dir)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source.path}: expected at least one row, got an empty file; check how it was written")
    columns = _columns(source, list(first), need_response)
    records = islice(_records(source, columns, chain([first], rows)), source.limit)
    table = _table(columns, records)
    if table.num_rows == 0:
        raise UserError(
            f"{source.path}: every row is blank or limit is 0, got no text; check the columns and the limit"
        )
    dataset = datasets.Dataset(table)
    if source.separator and (form := form_of(dataset)) != "pair":
        raise UserError(
            f"{source.path}: separator expected prompts, which it follows, got {form}; leave it out, or name the "
            "column with prompts as prompt"
        )
    return dataset


def fingerprint(source: Source, cache_dir: str | Path | None = None) -> str:
    """A digest of everything that decides what `read` returns, without parsing a local file.

    Local files and folders count with their bytes, never with their name or date; hub data with their rows.
    """
    options = dataclasses.asdict(source) | {"path": None}
    if source.file.exists():
        return digest_value([options, suffix_of(source.file), digest_path(source.file)])
    return digest_value(
        [options, [digest_value(row) for row in read(source, need_response=False, cache_dir=cache_dir)]]
    )


def _raw_rows(source: Source, cache_dir: str | Path | None) -> Iterator[Row]:
    if source.limit is not None and source.limit < 1:
        raise UserError(f"{source.path}: limit must be 1 or more, got {source.limit}; leave it out to read all rows")
    if source.file.exists():
        return rows_of_path(source.file)
    suffix = suffix_of(source.file)
    if suffix in READERS or not _HUB_NAME.fullmatch(source.path):
        raise UserError(f"{source.path}: no such file or folder; check data's path (it is relative to {Path.cwd()})")
    return iter(_from_hub(source, cache_dir))


def _from_hub(source: Source, cache_dir: str | Path | None) -> datasets.Dataset:
    """A split of a hub dataset. `datasets` runs no script of a dataset."""
    try:
        with _offline() if _hub_is_silent(source) else nullcontext():
            return datasets.load_dataset(
                source.path,
                source.name,
                split=source.split,
                revision=source.revision,
                cache_dir=None if cache_dir is None else str(cache_dir),
            )
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"{source.path}: no such file or folder here, and no such dataset at the hub (huggingface.co), or the hub "
            "cannot be reached; check the name and the network, or give a local file"
        ) from error
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source.path}: the hub dataset cannot be used: {reason}; check name, split, revision"
        ) from error


def _hub_is_silent(source: Source) -> bool:
    """Whether only the cache can be used; asks the hub once, where `datasets` would go on for half a minute."""
    try:
        HfApi().dataset_info(source.path, revision=source.revision, timeout=HUB_SECONDS)
    except HfHubHTTPError:  # an answer, which `datasets` will get as well
        return False
    except Exception:  # as for models, the transport's errors have no common base across versions
        return True
    return False


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's own switch for a machine without network, on for a moment."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _columns(source: Source, found: list[str], need_response: bool) -> dict[str, str]:
    """Which column of the file fills which column of the normal form."""
    named = {form: name for form in _FORMS if (name := getattr(source, form, None)) is not None}
    columns = _named_form(source, named, need_response) if named else _inferred_form(source, found, need_response)
    category = getattr(source, CATEGORY, None) or (CATEGORY if CATEGORY in found else None)
    if category is not None and not need_response:
        columns[CATEGORY] = category
    for name in columns.values():
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise UserError(f"{source.path}: no column '{name}'; {hint}it has {_names(found)}")
    if "response" in columns and set(EXACT) <= set(found):
        columns = columns | {name: name for name in EXACT}
    return columns | ({TEMPERATURE: TEMPERATURE} if TEMPERATURE in found else {})


def _names(found: list[str]) -> str:
    """Column names on one line."""
    return " ".join(", ".join(map(str, found)).split())


def _named_form(source: Source, named: dict[str, str], need_response: bool) -> dict[str, str]:
    if "prompt" in named or ("response" in named and need_response):
        pair = {"prompt": named.pop("prompt", "prompt")}
        if need_response or "response" in named:
            pair["response"] = named.pop("response", "response")
        forms = [pair, *({form: name} for form, name in named.items())]
    else:
        forms = [{form: name} for form, name in named.items()]
    if len(forms) != 1:
        raise UserError(
            f"{source.path}: name one of text, prompt with response, messages, or turns; got {', '.join(chain(*forms))}"
        )
    return forms[0]


def _inferred_form(source: Source, found: list[str], need_response: bool) -> dict[str, str]:
    forms: list[tuple[str, ...]] = [("messages",), ("prompt", "response"), ("text",)]
    if not need_response:
        forms = [("messages",), ("turns",), ("prompt", "response"), ("prompt",), ("text",)]
    for form in forms:
        if set(form) <= set(found):
            return {name: name for name in form}
    if "turns" in found:
        raise UserError(
            f"{source.path}: `turns` hold questions without answers; expected text, prompt and response, or messages: "
            "`tempspec generate` writes the target's answers"
        )
    known = "text, or prompt and response, or messages" + ("" if need_response else ", or turns")
    raise UserError(
        f"{source.path}: expected columns {known}; it has {_names(found)}; "
        "name yours, for example `text: " + (_names(found[:1]) or "body") + "`"
    )


def _records(source: Source, columns: dict[str, str], rows: Iterator[Row]) -> Iterator[Row]:
    """Checked rows in normal form; rows with a blank part are left out."""
    for number, row in enumerate(rows, start=1):
        record = {form: _value(source, number, form, name, row) for form, name in columns.items()}
        if all(value for form, value in record.items() if form not in _OPTIONAL):
            yield record


def _value(source: Source, number: int, form: str, name: str, row: Row) -> Any:
    place = f"{source.path}: row {number}: column '{name}'"
    if form == TEMPERATURE:
        return _temperature(place, row.get(name))
    if form == CATEGORY:
        return _category(place, row.get(name))
    if name not in row:
        raise UserError(f"{place} is missing; every row needs it")
    value = row[name]
    if form.endswith("_ids"):
        return _ids(place, value)
    check = {"messages": _messages, "turns": _turns}.get(form, _text)
    return check(place, value)


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place} must hold text, got {type(value).__name__}; repair the row or name another column")
    if not _is_unicode(value):
        raise UserError(f"{place} must hold Unicode text, got half of a surrogate pair; repair the row")
    return value if value.strip() else ""


def _is_unicode(text: str) -> bool:
    r"""Whether a text can be written as UTF-8; JSON may hold lone surrogates.

    >>> _is_unicode("grün\x00"), _is_unicode("\ud800")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ids(place: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in value):
        raise UserError(f"{place} must hold a list of token ids, got {_short(value)}; generate the data again")
    return value


def _messages(place: str, value: Any) -> list[dict[str, str]]:
    fine = isinstance(value, list) and all(
        isinstance(turn, dict)
        and all(isinstance(turn.get(name), str) and _is_unicode(turn[name]) for name in ("role", "content"))
        for turn in value
    )
    if not fine:
        raise UserError(
            f"{place} must hold a list of {{role, content}} with texts, got {_short(value)}; repair the row"
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _turns(place: str, value: Any) -> list[str]:
    """What the user says, turn by turn; nothing where one of them is blank."""
    if not isinstance(value, list) or not all(isinstance(turn, str) and _is_unicode(turn) for turn in value):
        raise UserError(f"{place} must hold a list of texts, one a turn, got {_short(value)}; repair the row")
    return value if all(turn.strip() for turn in value) else []


def _category(place: str, value: Any) -> str:
    """A name, empty where the row has none; numbers are names too."""
    if value is None:
        return ""
    if not isinstance(value, str | int) or not _is_unicode(str(value)):
        raise UserError(f"{place} must hold a name, got {_short(value)}; repair the row or name another column")
    return str(value).strip()


def _temperature(place: str, value: Any) -> float | None:
    """A temperature of at least 0, or None where the row does not say."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UserError(f"{place} must hold a temperature of 0 or more, got {_short(value)}; repair the row")
    return number


def _short(value: Any, width: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _table(columns: dict[str, str], records: Iterator[Row]) -> pa.Table:
    schema = pa.schema([(form, _TYPES.get(form, pa.float64())) for form in columns])
    batches = []
    while chunk := list(islice(records, _ROWS_AT_ONCE)):
        batches.append(pa.RecordBatch.from_pylist(chunk, schema))
    return pa.Table.from_batches(batches, schema)


Form = Literal["text", "pair", "messages", "turns"]


def form_of(dataset: datasets.Dataset) -> Form:
    """Which normal form a dataset that `read` returned has; prompts without responses are a `pair`."""
    forms: tuple[Form, ...] = ("text", "messages", "turns")
    return next((form for form in forms if form in dataset.column_names), "pair")
