"""Rows of a data file as plain dictionaries, numbered, one reader per format; none knows what a column means (floor 5).

The readers are our own and not the builders of `datasets`, because those guess types ("12" becomes a number, "NA"
nothing, "2024-01-01" a date), name no line in an error, and ask a server even for a local file. Nothing is executed or
unpickled. A row that cannot be read comes as `Unusable` in its place, so that the others are not lost.
"""

import csv
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tempspec.data.json_files import ENCODING, Numbered, RawRow, has_lines, rows_of_json
from tempspec.data.skipped import Unusable
from tempspec.errors import UserError

__all__ = [
    "READERS",
    "Numbered",
    "RawRow",
    "Unusable",
    "numbered_rows",
    "place_of",
    "row_word",
    "rows_of_path",
    "suffix_of",
]


_BYTES = "latin-1"
"""A character for each byte, so that a row that is no UTF-8 does not end the file."""


def rows_of_path(path: Path) -> Iterator[RawRow]:
    """The rows of a data file, or of a folder that `datasets` saved.

    Raises:
        UserError: the format is unknown, or the content is not what the format promises (with the line or row).
    """
    for number, row in numbered_rows(path):
        if isinstance(row, Unusable):
            raise UserError(f"{place_of(path, number)}: {row}; repair it")
        yield row


def numbered_rows(path: Path) -> Iterator[Numbered]:
    """The rows of a data file with their numbers from 1: lines of a file of lines, rows of any other.

    Raises:
        UserError: the format is unknown, or the file as a whole is not what the format promises.
    """
    if path.is_dir():
        return enumerate(rows_of_folder(path), start=1)
    reader = READERS.get(suffix_of(path))
    if reader is None:
        raise UserError(f"{path}: expected one of {', '.join(READERS)} or a folder, got '{path.suffix}'; convert it")
    return _with_clear_errors(path, reader)


def place_of(path: str | Path, number: int) -> str:
    """What a row is called: `data.jsonl line 12`, `data.parquet row 12`.

    Args:
        path: of the file, or the name of hub data.
        number: what `numbered_rows` gave.
    """
    return f"{path} {row_word(path)} {number}"


def row_word(path: str | Path) -> Literal["line", "row"]:
    """What a file's rows are counted as."""
    file = Path(path).expanduser()
    return "line" if suffix_of(file) == ".txt" or (suffix_of(file) in _JSON and has_lines(file)) else "row"


def suffix_of(path: Path) -> str:
    """What tells a file's format: its suffix, with the one before `.gz`.

    >>> suffix_of(Path("HumanEval.jsonl.gz")), suffix_of(Path("a.b.CSV"))
    ('.jsonl.gz', '.csv')
    """
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def rows_of_csv(path: Path) -> Iterator[Numbered]:
    """Comma-separated values with a header; every value stays the text that it is. Blank lines are no rows."""
    with path.open(encoding=_BYTES, newline="") as file:
        header = next(csv.reader(file), [])
    if not header:
        return
    names = {name: name.encode(_BYTES).decode().removeprefix("\ufeff") for name in header}
    ragged: dict[int, Unusable] = {}

    def note(row: pyarrow.csv.InvalidRow) -> str:
        found = f"expected {row.expected_columns}, got {row.actual_columns}"
        ragged[row.number - 1] = Unusable("another number of columns", found)  # the header is row 1
        return "skip"

    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, encoding=_BYTES),  # threads tell no row's number
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )
    rows = (row for batch in table.to_batches() for row in batch.to_pylist())
    for number in range(1, table.num_rows + len(ragged) + 1):
        yield number, ragged[number] if number in ragged else _decoded(next(rows), names)


def _decoded(row: dict[str, str], names: dict[str, str]) -> RawRow | Unusable:
    """A row of characters, each of which is a byte."""
    try:
        return {names[name]: value.encode(_BYTES).decode() for name, value in row.items()}
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", f"byte {error.object[error.start]:#04x}")


def rows_of_parquet(path: Path) -> Iterator[Numbered]:
    """Apache Parquet, batch by batch."""
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from enumerate((row for part in file.iter_batches(batch_size=1000) for row in part.to_pylist()), start=1)


def rows_of_text(path: Path) -> Iterator[Numbered]:
    """Plain text: one row `text` for each paragraph, the lines between two blank ones, their breaks kept."""
    lines: list[str] = []
    number = 0
    with path.open(encoding=ENCODING) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                lines.append(line.rstrip("\n"))
            elif lines:
                yield number - len(lines), {"text": "\n".join(lines)}
                lines = []
    if lines:
        yield number + 1 - len(lines), {"text": "\n".join(lines)}


def rows_of_folder(path: Path) -> Iterator[RawRow]:
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


_JSON = (".jsonl", ".jsonl.gz", ".json")
READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    **dict.fromkeys(_JSON, rows_of_json),
    ".parquet": rows_of_parquet,
    ".csv": rows_of_csv,
    ".txt": rows_of_text,
}


def _with_clear_errors(path: Path, reader: Callable[[Path], Iterator[Numbered]]) -> Iterator[Numbered]:
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
