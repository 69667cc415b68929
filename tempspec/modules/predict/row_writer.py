"""Finished rows on their way to disk: written by time, not by count (floor 5)."""

from collections.abc import Callable
from time import monotonic
from typing import Any

from tempspec.modules.predict.row_store import RowStore, StoredRow

__all__ = ["RowWriter"]


class RowWriter:
    """Keeps rows until it is time to write them.

    Args:
        store: where they go.
        every: seconds between two writes.
        clock: seconds.
    """

    def __init__(self, store: RowStore, every: float, clock: Callable[[], float] = monotonic) -> None:
        self._store = store
        self._every = every
        self._clock = clock
        self._rows: list[StoredRow] = []
        self._oldest = 0.0

    def add(self, *rows: Any) -> None:
        """Keep rows; those of one call are written together, or not at all."""
        if not self._rows:
            self._oldest = self._clock()
        self._rows += rows
        self.tick()

    def tick(self) -> None:
        """Write, if the oldest row has waited long enough."""
        if self._rows and self._clock() - self._oldest >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        rows, self._rows = self._rows, []
        if rows:
            self._store.append(rows)
