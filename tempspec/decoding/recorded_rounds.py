"""Rounds as recordings: all that lies between two looks of the host is one replay (floor 4).

Few sizes of rounds are recorded: all slots, the longest draft, the most tokens that a draft may have to catch up on,
and views of the text that double. A recording has its inputs at places of its own, and no other value reaches it.

Axes: B rows, all slots; C numbers for the host.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from tempspec.decoding.device_round import DeviceRound, Sent
from tempspec.decoding.noise import RoundNoise
from tempspec.decoding.rounds import RoundStart
from tempspec.decoding.slots import Laws
from tempspec.models.compiling import SHAPES, Record
from tempspec.models.draft_steps import Extent
from tempspec.models.stopwatch import Stopwatch

__all__ = ["Largest", "RecordedRounds"]

CHECKED = 2
"""Rounds of a recording that run eagerly as well: the one that it was made in, and the first with other values."""


@dataclass(frozen=True, slots=True)
class Largest:
    """How large every recorded round is.

    Attributes:
        lacking: tokens that the draft catches up on; 0 without one.
        drafted: tokens of a drafted path.
        nodes: tokens that are drafted.
        view: how many positions are seen by a pass up to some position.
    """

    lacking: int
    drafted: int
    nodes: int
    view: Callable[[int], int]

    def extent(self, own: Extent) -> Extent:
        """That of the recording which serves a round."""
        longest = self.view(own.longest + self.nodes) - self.nodes
        return Extent(longest, longest, self.lacking, self.drafted)


class RecordedRounds:
    """Records a round of each size when it is first met, and replays it afterwards.

    Some rounds run as they are: those with a row that is shorter than what the draft catches up on, of a size beyond
    the first `most`, and all once a recording failed, or gave other numbers than the round itself. One line says why.

    Args:
        rounds: the rounds themselves.
        record: makes a recording.
        largest: their sizes.
        stopwatches: the target's, which counts a recorded round as a whole, then those that count parts of others.
        most: recordings at most; each holds memory.
    """

    def __init__(
        self,
        rounds: DeviceRound,
        record: Record,
        largest: Largest,
        stopwatches: Sequence[Stopwatch],
        most: int = SHAPES,
    ) -> None:
        self._rounds, self._record, self._largest, self._most = rounds, record, largest, most
        self._stopwatches = stopwatches
        self._recorded: dict[_Size, _Recording] = {}
        self._full, self._given_up = False, False

    def run(self, start: RoundStart) -> Sent:
        """One round of all slots; its tokens are in the buffer afterwards."""
        sent = None
        if not self._given_up and start.extent.shortest >= self._largest.lacking:
            with self._timed_as_one():
                sent = self._replayed(start)
        return self._rounds.run(start) if sent is None else sent

    def _replayed(self, start: RoundStart) -> Sent | None:
        """The round by its recording; None where there is none, or a wrong one."""
        size = _Size.of(start.laws, self._largest.extent(start.extent))
        if size not in self._recorded and len(self._recorded) >= self._most:
            if not self._full:
                _say(f"rounds of other sizes run eagerly, as {self._most} are recorded, which is the most")
            self._full = True
            return None
        try:
            if size not in self._recorded:
                self._recorded[size] = _Recording(self._rounds, self._record, size.extent, start)
        except RuntimeError as error:
            self._give_up((str(error).splitlines() or [type(error).__name__])[0])
            return None
        sent = self._recorded[size].run(start)
        if sent is None:
            self._give_up("a recorded one gives other numbers: something reads the host")
        return sent

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._recorded.clear()
        _say(f"rounds run eagerly, as {reason}")

    @contextmanager
    def _timed_as_one(self) -> Iterator[None]:
        """A recording holds no clock: the whole of it is the target's time."""
        with ExitStack() as stack:
            stack.enter_context(self._stopwatches[0].running())
            for each in self._stopwatches:
                stack.enter_context(each.standing())
            yield


def _say(what: str) -> None:
    warnings.warn(f"compile: {what}", stacklevel=5)


class _Size(NamedTuple):
    """What recordings are told by."""

    extent: Extent
    cuts: tuple[str, ...]
    most_k: int

    @classmethod
    def of(cls, laws: Laws, extent: Extent) -> "_Size":
        return cls(extent, tuple(_tensors(laws)), laws.most_k)


def _tensors(laws: Laws) -> dict[str, Tensor]:
    """The sampling parameters that rows have, by name."""
    given = {field.name: getattr(laws, field.name) for field in fields(laws)}
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


class _Recording:
    """A round whose inputs are at places of its own.

    Args:
        rounds: the rounds themselves.
        record: makes the recording.
        extent: what is taken for the host's knowledge of the rows.
        start: the first round.
    """

    def __init__(self, rounds: DeviceRound, record: Record, extent: Extent, start: RoundStart) -> None:
        self._rounds, self._first = rounds, replace(start, extent=extent, texts=_untold)
        self._given = self._inputs(start)
        self._own = [value.clone() for value in self._given]
        self._unchecked = CHECKED
        self._replay = record(self._run)

    def run(self, start: RoundStart) -> Sent | None:
        """A round from its recording; None where the round itself gives other numbers."""
        given = self._inputs(start)
        for own, before, value in zip(self._own, self._given, given, strict=True):
            if value is not before:  # parameters stay those of the rows, round after round
                own.copy_(value)
        self._given = given
        sent = replace(self._sent, number_BC=self._replay())
        if self._unchecked:
            self._unchecked -= 1
            if not _agree(sent, self._rounds.run(self._start())):
                return None
        return sent

    def _run(self) -> Tensor:
        self._sent = self._rounds.run(self._start())
        return self._sent.number_BC

    def _start(self) -> RoundStart:
        """The round at the recording's own places; rows of temperature 0 may be among any."""
        own = iter(self._own)
        changed: dict[str, Any] = {name: next(own) for name in _tensors(self._first.laws)}
        limit_B, *made_of = own
        laws, noise = replace(self._first.laws, greedy=True, **changed), RoundNoise(*made_of)
        return replace(self._first, laws=laws, noise=noise, length_B=noise.length_B, limit_B=limit_B)

    @staticmethod
    def _inputs(start: RoundStart) -> list[Tensor]:
        return [*_tensors(start.laws).values(), start.limit_B, *start.noise.given]


def _untold() -> NoReturn:
    raise RuntimeError("the drafter reads the rows' texts, which no recording knows")


def _agree(sent: Sent, other: Sent) -> bool:
    """Whether two rounds have the same counts and tokens, and the same closed forms but for rounding."""
    one_BC, other_BC = (each.number_BC for each in (sent, other))
    forms, others = (each[:, sent.counts :].contiguous().view(torch.float64) for each in (one_BC, other_BC))
    same = torch.equal(one_BC[:, : sent.counts], other_BC[:, : sent.counts])
    return same and torch.allclose(forms, others, rtol=1e-3, atol=1e-6, equal_nan=True)
