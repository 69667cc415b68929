"""JSON and JSON Lines as rows with their numbers (floor 5).

A file is told by how it begins, not by its name alone: an array, an object over many lines, or an object a line.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from tempspec.data.skipped import Unusable
from tempspec.errors import UserError

RawRow = dict[str, Any]
ENCODING = "utf-8-sig"
"""UTF-8 with or without the byte-order mark that spreadsheets put first."""
_MARK = b"\xef\xbb\xbf"
_TURN = ("role", "from")
"""What an object has that is a turn of a conversation, and no row."""


Numbered = tuple[int, RawRow | Unusable]
"""A row, or why it cannot be read, and its number in the file, from 1."""


def has_lines(path: Path) -> bool:
    """Whether a JSON file holds an object a line; `.jsonl` does unless it begins as nothing but an array can."""
    with _opened(path) as file:
        filled = (line for line in file if line.strip().removeprefix(_MARK))
        first, second = (next(filled, b"").strip().removeprefix(_MARK) for _ in range(2))
    if path.suffix.lower() != ".json":
        return first not in (b"[", b"{") and not first.startswith(b"[{")
    return first[:1] != b"[" and second[:1] == b"{" and first[-1:] not in b"[{,:"  # which end a line within an object


def rows_of_json(path: Path) -> Iterator[Numbered]:
    """An object a line (blank lines are no rows), an array of objects, or one object.

    Raises:
        UserError: a file that is not in lines is not JSON.
    """
    if has_lines(path):
        with _opened(path) as file:
            yield from _of_lines(file)
        return
    with _opened(path) as file:
        text = file.read().decode(ENCODING)
    if text.strip():
        value = _whole(path, text)
        yield from enumerate(map(_object, value if isinstance(value, list) else [value]), start=1)


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _of_lines(lines: BinaryIO) -> Iterator[Numbered]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(_MARK)
        if line.strip():
            yield number, _of_line(line)


def _of_line(line: bytes) -> RawRow | Unusable:
    try:
        return _object(json.loads(line.decode().rstrip()))
    except UnicodeDecodeError as error:
        return Unusable("not UTF-8", f"byte {error.object[error.start]:#04x}")
    except json.JSONDecodeError as error:
        return Unusable("not JSON", f"{error.msg}, column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        return Unusable("not JSON", str(error).partition(";")[0])


def _object(value: Any) -> RawRow | Unusable:
    return value if isinstance(value, dict) else Unusable("no JSON object", f"got {type(value).__name__}")


def _whole(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} is not JSON ({error.msg}, column {error.colno})"
        raise UserError(f"{path}: {place}; repair it, or write JSON Lines, one object per line") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({str(error).partition(';')[0]}); repair it") from error


def wrapped_rows(path: str | Path, row: RawRow) -> list[Numbered] | None:
    """The rows that a file's only object wraps, as in `{"data": [...]}`; None where it is a row itself.

    Raises:
        UserError: it has several lists of objects.
    """
    lists = {name: member for name, member in row.items() if _holds_rows(member)}
    if not lists:
        return None
    if len(lists) > 1:
        raise UserError(
            f"{path}: expected a list of rows or JSON Lines, got one object with the lists {', '.join(lists)}; write "
            "the one to read to a file of its own"
        )
    (rows,) = lists.values()
    return list(enumerate(map(_object, rows), start=1))


def _holds_rows(value: Any) -> bool:
    """Whether a value is a list of objects that are not turns of a conversation."""
    fine = isinstance(value, list) and value and all(isinstance(member, dict) for member in value)
    return bool(fine) and not any(name in value[0] for name in _TURN)
