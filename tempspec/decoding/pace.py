"""How far a pass of decoding is, how fast, and how long it still takes (floor 4)."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

__all__ = ["Pace", "PassCounts", "clock_time"]


class PassCounts(NamedTuple):
    """What a pass has done since it began, over all processes.

    Attributes:
        rows: finished requests.
        finished: their tokens.
        tokens: all tokens, those of unfinished requests included.
        tested: drafted tokens that were tested.
        accepted: of these.
    """

    rows: int = 0
    finished: int = 0
    tokens: int = 0
    tested: int = 0
    accepted: int = 0


@dataclass
class Pace:
    """One pass.

    Attributes:
        name: the pass.
        all_rows: its rows, those of earlier runs included.
        old_rows: rows of earlier runs.
        clock: seconds.
        trouble: what holds it up, in words; empty for nothing.
    """

    name: str
    all_rows: int
    old_rows: int = 0
    clock: Callable[[], float] = perf_counter
    trouble: str = ""

    def __post_init__(self) -> None:
        """Nothing is done yet."""
        self._began: float | None = None
        self.counts = PassCounts()

    def start(self) -> None:
        """Start the clock, once."""
        if self._began is None:
            self._began = self.clock()

    @property
    def rows(self) -> int:
        """The rows that are there."""
        return self.old_rows + self.counts.rows

    @property
    def seconds(self) -> float:
        """Since the pass began in this run."""
        return 0.0 if self._began is None else self.clock() - self._began

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this run by the clock."""
        return self.counts.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At this speed, if other rows become as long as the finished ones; None before the first is finished."""
        done = self.counts
        if not done.rows or not done.tokens:
            return None
        expected = (self.all_rows - self.rows) * done.finished / done.rows
        return max(expected - (done.tokens - done.finished), 0.0) / self.tokens_per_second

    def figures(self) -> dict[str, str]:
        """What is shown, by short names."""
        speed = self.tokens_per_second
        shown = {"tokens/s": f"{speed:.2f}" if 0 < speed < 1 else f"{speed:.0f}"}
        if self.counts.tested:
            shown["acceptance"] = f"{self.counts.accepted / self.counts.tested:.3f}"
        if (left := self.seconds_left) is not None:
            shown["left"] = clock_time(left)
        return shown

    def __str__(self) -> str:
        """One line."""
        figures = ", ".join(f"{name} {value}" for name, value in self.figures().items())
        trouble = f"; {self.trouble}" if self.trouble else ""
        return f"{self.name}: {self.rows} of {self.all_rows} rows, {figures}{trouble}"


def clock_time(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock_time(75), clock_time(7322)
    ('1:15', '2:02:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
