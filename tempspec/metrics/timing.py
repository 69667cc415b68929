"""Where and when rows were timed, and which of them a speed-up may compare (floor 4).

A run folder may hold rows of several days and machines: a run was continued, or a verifier was added. A speed-up is a
ratio of two speeds of one machine.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from tempspec.interfaces import BASELINE
from tempspec.metrics.rows import Cell, DecodedRow, timed_together

__all__ = ["TimingPlaces", "baseline_cell", "places_of"]

_UNKNOWN = "unknown, by an earlier version"


def baseline_cell(cell: Cell) -> Cell:
    """Plain decoding of the same prompts at the same target temperature."""
    return replace(cell, verifier=BASELINE, draft_temperature=cell.target_temperature)


class TimingPlaces:
    """Of every cell and batch size, which prompt was timed where and when.

    >>> places, cell = TimingPlaces(), Cell("block", "code", 1.0, 1.0)
    >>> row = {"pass": "timing", "prompt_key": 7, "timing_slots": 1, "timed_on": "A", "timed_in": "Monday"}
    >>> places.add(cell, row)
    >>> places.add(baseline_cell(cell), row | {"timed_on": "B"})
    >>> places.comparable(cell, 1)
    False
    """

    def __init__(self) -> None:
        self._machines: dict[tuple[Cell, int], set[tuple[int, str]]] = defaultdict(set)
        self._sessions: dict[tuple[Cell, int], set[tuple[int, str]]] = defaultdict(set)

    def add(self, cell: Cell, row: DecodedRow) -> None:
        """Note a row; one of another pass than timing says nothing."""
        if row["pass"] == "timing":
            place, prompt = (cell, timed_together(row)), row["prompt_key"]
            self._machines[place].add((prompt, row.get("timed_on") or _UNKNOWN))
            self._sessions[place].add((prompt, row.get("timed_in") or _UNKNOWN))

    def comparable(self, cell: Cell, slots: int) -> bool:
        """Whether each prompt of a cell was timed on the machines that plain decoding of it was timed on."""
        one, other = (self._machines.get((each, slots), set()) for each in (cell, baseline_cell(cell)))
        return not one or not other or one == other

    @property
    def machines(self) -> list[str]:
        """All machines."""
        return sorted({machine for found in self._machines.values() for _, machine in found})

    def notes(self) -> list[str]:
        """What a reader of these figures should know: a line each, none where all is of one machine and session."""
        found = []
        if len(machines := self.machines) > 1:
            found.append(
                f"timed on {len(machines)} machines ({'; '.join(machines)}): tokens/s is pooled over them, and a "
                "speed-up is left out where plain decoding was timed on another machine"
            )
        if days := self._torn(self._sessions):
            found.append(
                f"speed-ups compare rows that were timed in different sessions (begun {', '.join(days)}): what else "
                "the machine did may differ; for one session predict in another --run folder"
            )
        return found

    def _torn(self, places: dict[tuple[Cell, int], set[tuple[int, str]]]) -> list[str]:
        """The sessions of speed-ups whose two sides are not of the same ones."""
        torn = set()
        for (cell, slots), own in places.items():
            plain = places.get((baseline_cell(cell), slots))
            if plain and own != plain and self.comparable(cell, slots):
                torn |= {session for _, session in own ^ plain}
        return sorted(torn)


def places_of(cells_and_rows: Iterable[tuple[Cell, DecodedRow]]) -> TimingPlaces:
    """The places of some rows."""
    found = TimingPlaces()
    for cell, row in cells_and_rows:
        found.add(cell, row)
    return found
