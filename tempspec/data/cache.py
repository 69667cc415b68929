"""Encoded corpora on disk: written once, atomically, under a key of everything that they depend on (floor 5)."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from tempspec.data.rows import ROW, EncodingReport
from tempspec.errors import UserError

FORMAT = 2
"""The version of the encoding: raised whenever the same corpus would be encoded differently."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/tempspec`, by default `~/.cache/tempspec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tempspec"


def cached(
    folder: Path, key: str, produce: Callable[[EncodingReport], Iterator[pa.Table]]
) -> tuple[datasets.Dataset, EncodingReport]:
    """The rows kept under a key, and the account of how they came about; produced only where they are missing.

    Several processes may ask at once: each writes a file of its own, and the first name is kept.

    Args:
        folder: the cache folder; made when missing.
        key: a digest of everything that the rows depend on.
        produce: makes the rows, tables of `ROW`, and fills in the report.

    Raises:
        UserError: the folder cannot be written.
    """
    file = folder / f"{key}.arrow"
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(file, produce)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); set data.cache_dir to another") from error
    return datasets.Dataset.from_file(str(file)), EncodingReport(**json.loads(_report_file(file).read_text()))


def _report_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _write(file: Path, produce: Callable[[EncodingReport], Iterator[pa.Table]]) -> None:
    """Write rows and report beside the final names, then rename: the report first, so that rows never lack one."""
    report = EncodingReport()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as scratch:
        draft = Path(scratch) / file.name
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, ROW) as writer:
            for table in produce(report):
                writer.write_table(table)
        _report_file(draft).write_text(json.dumps(report.as_dict()))
        os.replace(_report_file(draft), _report_file(file))
        os.replace(draft, file)
