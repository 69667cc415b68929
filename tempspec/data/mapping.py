"""A corpus put through a function, batch by batch, on several processes, with what shows how far it is (floor 5)."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

Maker = Callable[[dict[str, list[Any]], Sequence[int]], pa.Table]

_MANY = 5_000
"""Rows from which on all cores encode: a process takes seconds to start."""
_ROWS_AT_ONCE = 256
_SECONDS = 30
"""Between two lines where there is no terminal for a bar."""


@contextmanager
def mapped(
    dataset: datasets.Dataset, make: Maker, name: str, workers: int | None = None, scratch: Path | None = None
) -> Iterator[datasets.Dataset]:
    """What a function makes of a dataset, in its order; it lies on disk as long as the context lasts.

    Args:
        dataset: rows, at least one.
        make: a table of a batch and its rows' numbers; picklable.
        name: what is being done, for the bar or the lines.
        workers: processes; None for one where there are few rows, and else one for each core.
        scratch: the folder below which it lies; the system's own for such by default.
    """
    if workers is None:
        workers = _cores() if len(dataset) >= _MANY else 1
    workers = max(1, min(workers, len(dataset)))
    shown = len(dataset) >= _MANY and sys.stderr.isatty()
    speaking = _Speaking(make, name, max(1, len(dataset) // workers), silent=shown or len(dataset) < _MANY)
    with tempfile.TemporaryDirectory(prefix=".encoding-", dir=scratch) as folder, _bars(shown):
        with _environment_kept():
            made = dataset.map(
                speaking,
                batched=True,
                batch_size=_ROWS_AT_ONCE,
                with_indices=True,
                with_rank=True,
                num_proc=workers if workers > 1 else None,
                remove_columns=dataset.column_names,
                load_from_cache_file=False,
                cache_file_name=str(Path(folder) / "made.arrow"),
                new_fingerprint="made",
                desc=name,
            )
        yield made


class _Speaking:
    """A function over batches that says now and then how far it is: the first process does, for all.

    Args:
        make: the function.
        name: what is being done.
        rows: how many rows each process has.
        silent: whether to say nothing.
    """

    def __init__(self, make: Maker, name: str, rows: int, *, silent: bool) -> None:
        self.make, self.name, self.rows, self.silent = make, name, rows, silent
        self.next = time.monotonic() + _SECONDS

    def __call__(self, batch: dict[str, list[Any]], numbers: Sequence[int], rank: int | None) -> pa.Table:
        made = self.make(batch, numbers)
        if not self.silent and not rank and time.monotonic() > self.next:
            self.next += _SECONDS
            rank_zero_info(f"{self.name}: {min(1.0, (numbers[-1] + 1) / self.rows):.0%}")
        return made


@contextmanager
def _environment_kept() -> Iterator[None]:
    """`os.environ` as it was, and the same object: `datasets` puts a copy in its place when it starts processes.

    Whoever holds the object itself, as rich does, would see no later change.
    """
    environment, held = os.environ, dict(os.environ)
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003 - the very object, which `environ.clear()` alone would not bring back
        for name in environment.keys() - held.keys():
            del environment[name]
        environment.update(held)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """The bars of `datasets`, on or off for a while."""
    disabled = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if disabled else datasets.enable_progress_bars)()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
