"""What happens between two rounds: rows are written, processes hear of each other, progress is shown (floor 5)."""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import ClassVar, TypeVar

from tempspec.decoding.pace import Pace, PassCounts
from tempspec.decoding.tally import Tally
from tempspec.modules.predict.dealing import Dealer
from tempspec.modules.predict.row_writer import RowWriter

__all__ = ["PassProgress", "Pulse"]

EVERY = 0.25
"""Seconds between two looks at the other processes and at the progress."""

_Row = TypeVar("_Row")


class PassProgress:
    """How far a pass is: what this process did, and the pace of all.

    Args:
        pace: of the pass.
    """

    SLOTS: ClassVar = ("busy", "offered", "queued_busy", "queued_offered")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.tally = Tally()
        self.rows = 0
        self.finished = 0
        self._told = PassCounts()

    @property
    def counts(self) -> PassCounts:
        """What this process did."""
        return PassCounts(self.rows, self.finished, self.tally.tokens, self.tally.tested, self.tally.accepted)

    def slots(self) -> dict[str, int]:
        """The slot-rounds that this process counted."""
        return {name: getattr(self.tally, name) for name in self.SLOTS}

    def exchange(self, dealer: Dealer) -> None:
        """Tell the other processes what this one did, and learn what all did."""
        now = self.counts
        new = (a - b for a, b in zip(now, self._told, strict=True))
        names = (f"{self.pace.name} {name}" for name in PassCounts._fields)
        self._told = now
        self.pace.counts = PassCounts(*map(dealer.add, names, new))


class Pulse:
    """Called before every round of an engine; says whether to stop.

    Args:
        dealer: of the processes.
        writer: of finished rows.
        progress: of the pass.
        stop: gives the exit code that this process is asked to stop with, 0 for none.
        watch: shown the pace.
        clock: seconds.

    Attributes:
        code: the exit code that some process was asked to stop with; 0 for none.
    """

    def __init__(
        self,
        dealer: Dealer,
        writer: RowWriter,
        progress: PassProgress,
        stop: Callable[[], int] | None = None,
        watch: Callable[[Pace], None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.code = dealer.stop_code()
        self._dealer = dealer
        self._writer = writer
        self._progress = progress
        self._stop = stop
        self._watch = watch
        self._clock = clock
        self._heard = clock()
        progress.pace.start()

    def __call__(self) -> bool:
        """Write what is due, and see `hear`."""
        self._writer.tick()
        return self.hear(at_work=True)

    def hear(self, at_work: bool = False) -> bool:
        """Hear of the others, show the progress, say whether to stop.

        Args:
            at_work: let the others know that this process is.
        """
        if not self.code and self._stop is not None and (code := self._stop()):
            self.code = code
            self._dealer.tell(code)
        if (now := self._clock()) - self._heard >= EVERY:
            self._heard = now
            if at_work:
                self._dealer.beat()
            self.code = self.code or self._dealer.stop_code()
            self.show()
        return bool(self.code)

    def count(self, tokens: int) -> None:
        """Count a finished row."""
        self._progress.rows += 1
        self._progress.finished += tokens

    def show(self) -> None:
        """Bring the pace up to date and show it."""
        self._progress.exchange(self._dealer)
        if self._watch is not None:
            self._watch(self._progress.pace)

    def whole(self, rows: Iterable[_Row]) -> list[_Row]:
        """All of some rows, or none where the run was stopped between them."""
        found = list(rows)
        return [] if self.code else found
