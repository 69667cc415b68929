"""What the sections of a report have in common (floor 5)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tempspec.interfaces import BASELINE
from tempspec.metrics.rows import Cell
from tempspec.reporting.charts import Chart
from tempspec.reporting.page_tables import Sheet
from tempspec.reporting.runs import MeasuredDraft

__all__ = ["TEMPERATURE", "Section", "drafting_pairs", "groups", "slug"]

TEMPERATURE = "target temperature T"


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, figures and tables."""

    id: str
    title: str
    text: str
    charts: Sequence[Chart] = field(default_factory=list)
    sheets: Sequence[Sheet] = field(default_factory=list)


def groups(drafts: Sequence[MeasuredDraft]) -> Iterator[tuple[MeasuredDraft, str, list[Cell]]]:
    """(draft, place, cells by temperature) for each prompt set, verifier and rule for the draft temperature."""
    for draft in drafts:
        grouped: dict[str, list[Cell]] = {}
        for cell in sorted(draft.estimates, key=lambda cell: cell.target_temperature):
            if cell.verifier != BASELINE:
                place = f"{cell.prompt_set}, {cell.verifier}{_rule(draft, cell)}"
                grouped.setdefault(place, []).append(cell)
        for place, cells in grouped.items():
            yield draft, place, cells


def drafting_pairs(draft: MeasuredDraft) -> Iterator[tuple[Cell, Cell]]:
    """(proposals sampled at T, proposals by argmax) of each verifier and prompt set, for every T > 0 with both."""
    for cell in draft.estimates:
        argmax = replace(cell, draft_temperature=0.0)
        sampled = cell.draft_temperature == cell.target_temperature > 0 and cell.verifier != BASELINE
        if sampled and argmax in draft.estimates:
            yield cell, argmax


def _rule(draft: MeasuredDraft, cell: Cell) -> str:
    """The rule for the draft temperature where it is not the target's; a fitted one is another at every T.

    Where seeds were fitted separately at one T, each value is a rule of its own: together they would share a place.
    """
    pair = cell.target_temperature, cell.draft_temperature
    if pair[0] == pair[1]:
        return ""
    if {fit for fit in draft.fitted if fit[0] == pair[0]} == {pair}:
        return ", draft T fitted"
    return f", draft T = {pair[1]:g}" if pair[1] else ", argmax drafts"


def slug(*names: str) -> str:
    """A file name and an HTML id; a digest distinguishes names that look the same without their punctuation."""
    text = "-".join(names)
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    return plain if plain == text else f"{plain}-{sum(ord(c) * (i + 1) for i, c in enumerate(text)) % 65536:04x}"
