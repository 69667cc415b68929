"""The work list as what a process takes up: whole passes, their units, and the queue that feeds an engine (floor 4)."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from tempspec.decoding.worklist import WorkItem, unanswered
from tempspec.interfaces import BASELINE, Pass, Request

__all__ = ["Queue", "Work", "works"]


class Work:
    """One pass of one verifier, or the timing pass at one batch size: what one call of the engine's owner decodes.

    It is no collection and no dataclass on purpose: Lightning looks into those, and converts what it finds.

    Args:
        pass_: `acceptance` or `timing`.
        label: the verifier's; empty for a timing pass, which has all of them.
        timing_slots: the batch size that a timing pass measures; 0 in the other.
        units: what is handed to a process at a time: a conversation's next turn; or, timed, the same prompts at the
            same temperatures by the baseline and every verifier.
    """

    def __init__(self, pass_: Pass, label: str, timing_slots: int, units: Sequence[Sequence[WorkItem]]) -> None:
        self.pass_ = pass_
        self.label = label
        self.timing_slots = timing_slots
        self.units = units
        self.last = False
        """Whether the run ends with it."""

    @property
    def name(self) -> str:
        """What no other work of the run is called."""
        return f"{self.pass_} {self.label or self.timing_slots}"

    @property
    def rows(self) -> int:
        """The rows that it will give, as far as conversations do not outgrow the context."""
        return sum(item.prompt.turns - item.turn + 1 for unit in self.units for item in unit)

    def left(self, answers: Mapping[str, str], context: int) -> "Work":
        """The same without what is answered; see `unanswered`."""
        units = [unanswered(unit, answers, context) for unit in self.units]
        return Work(self.pass_, self.label, self.timing_slots, [unit for unit in units if unit])


class Queue(Iterator[Request]):
    """The requests of some openings, and of every later turn when it is put back; may run dry and have more later.

    Args:
        openings: taken from as slots become free.
    """

    def __init__(self, openings: Iterable[WorkItem]) -> None:
        self._openings = iter(openings)
        self._turns: deque[WorkItem] = deque()
        self._taken: dict[str, WorkItem] = {}

    def __next__(self) -> Request:
        item = self._turns.popleft() if self._turns else next(self._openings)
        self._taken[item.key] = item
        return item.request

    def done(self, key: str) -> WorkItem:
        """The item of a finished request."""
        return self._taken.pop(key)

    def put_back(self, item: WorkItem) -> None:
        """Let a turn come next."""
        self._turns.append(item)


def works(items: Sequence[WorkItem]) -> list[Work]:
    """The work list by pass, verifier and timed batch size, in its order."""
    found = []
    for (pass_, size, label), group in groupby(items, key=_work_of):
        members = list(group)
        found.append(Work(pass_, label, size, [[item] for item in members] if not size else list(_timed(members))))
    return found


def _work_of(item: WorkItem) -> tuple[Pass, int, str]:
    return item.pass_, item.timing_slots, "" if item.timing_slots else item.verifier


def _timed(items: Sequence[WorkItem]) -> Iterator[list[WorkItem]]:
    """Units of a timing pass: each begins with the baseline."""
    unit: list[WorkItem] = []
    for item in items:
        if unit and item.verifier == BASELINE != unit[-1].verifier:
            yield unit
            unit = []
        unit.append(item)
    if unit:
        yield unit
