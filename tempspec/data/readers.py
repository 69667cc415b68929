"""Rows of a data file as plain dictionaries, one reader a format. Nothing here knows what a column means.

The readers are our own and not the builders of `datasets`, because those guess types ("12" becomes a number, "NA"
nothing, "2024-01-01" a date), name no line in an error, and ask a server even for a local file. Nothing is executed or
unpickled.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tempspec.errors import UserError

Row = dict[str, Any]
ENCODING = "utf-8-sig"
"""UTF-8 with or without the byte-order mark that spreadsheets put first."""


def rows_of_path(path: Path) -> Iterator[Row]:
    """The rows of a data file, or of a folder that `datasets` saved.

    Raises:
        UserError: the format is unknown, or the content is not what the format promises (with the line or row).
    """
    if path.is_dir():
        return rows_of_folder(path)
    reader = READERS.get(suffix_of(path))
    if reader is None:
        raise UserError(f"{path}: expected one of {', '.join(READERS)} or a folder, got '{path.suffix}'; convert it")
    return _with_clear_errors(path, reader)


def suffix_of(path: Path) -> str:
    """What tells a file's format: its suffix, with the one before `.gz`.

    >>> suffix_of(Path("HumanEval.jsonl.gz")), suffix_of(Path("a.b.CSV"))
    ('.jsonl.gz', '.csv')
    """
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def rows_of_lines(path: Path) -> Iterator[Row]:
    """JSON Lines: one object a line; blank lines are skipped."""
    with path.open(encoding=ENCODING) as file:
        yield from _objects(path, file)


def rows_of_packed_lines(path: Path) -> Iterator[Row]:
    """JSON Lines under gzip, as HumanEval is published."""
    with gzip.open(path, "rt", encoding=ENCODING) as file:
        yield from _objects(path, file)


def _objects(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _object(path, f"line {number}", _parse(path, line.rstrip(), first_line=number))


def rows_of_json(path: Path) -> Iterator[Row]:
    """A JSON array of objects; a file that does not start with `[` is read as JSON Lines."""
    text = path.read_text(encoding=ENCODING)
    if not text.lstrip().startswith("["):
        yield from rows_of_lines(path)
        return
    for number, value in enumerate(_parse(path, text), start=1):
        yield _object(path, f"row {number}", value)


def rows_of_csv(path: Path) -> Iterator[Row]:
    """Comma-separated values with a header; every value stays the text that it is."""
    with path.open(encoding=ENCODING, newline="") as file:
        header = next(csv.reader(file), [])
    if not header:
        return
    table = pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )
    for batch in table.to_batches():
        yield from batch.to_pylist()


def rows_of_parquet(path: Path) -> Iterator[Row]:
    """Apache Parquet, batch by batch."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def rows_of_text(path: Path) -> Iterator[Row]:
    """Plain text: one row `text` for each paragraph, the lines between two blank ones, their breaks kept."""
    lines: list[str] = []
    with path.open(encoding=ENCODING) as file:
        for line in file:
            if line.strip():
                lines.append(line.rstrip("\n"))
            elif lines:
                yield {"text": "\n".join(lines)}
                lines = []
    if lines:
        yield {"text": "\n".join(lines)}


def rows_of_folder(path: Path) -> Iterator[Row]:
    """A folder written by `datasets.Dataset.save_to_disk`.

    Raises:
        UserError: it is no such folder, it names files outside, or it holds several splits.
    """
    try:
        _check_inside(path)
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: expected a folder saved by datasets' save_to_disk; name a data file in it") from error
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(
            f"{path}: holds the splits {', '.join(dataset)}; name one, such as {path / next(iter(dataset))}"
        )
    return iter(dataset)


def _check_inside(path: Path) -> None:
    """Refuse a saved dataset whose list of files leads out of its folder."""
    state = path / "state.json"
    if not state.is_file():
        return
    for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
        if Path(file["filename"]).name != file["filename"]:
            raise UserError(f"{path}: its state.json leads out of the folder, to {file['filename']}; save it anew")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": rows_of_lines,
    ".jsonl.gz": rows_of_packed_lines,
    ".json": rows_of_json,
    ".parquet": rows_of_parquet,
    ".csv": rows_of_csv,
    ".txt": rows_of_text,
}


def _with_clear_errors(path: Path, reader: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    """Turn what a reader may meet in a broken file into one line."""
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}; convert it"
        ) from error
    except (pa.ArrowException, csv.Error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a readable {path.suffix} file: {reason}; repair or convert it") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: its gzip stream is broken; fetch it again") from error
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise UserError(f"{path}: cannot be read: {reason}; check the file and its rights") from error


def _parse(path: Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}: line {line} is not JSON ({error.msg}, column {error.colno}); repair it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        reason = str(error).partition(";")[0]
        raise UserError(f"{path}: line {first_line} cannot be read as JSON ({reason}); repair it") from error


def _object(path: Path, place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {place}: expected a JSON object, got {type(value).__name__}; one object a row")
    return value
