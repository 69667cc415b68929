"""The quickstart's table, its three sentences and its curves (floor 6)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.collection import SweepMetrics, compare
from tempspec.metrics.rows import Cell, DecodedRow
from tempspec.reporting.answers import contrast, shown, verdict
from tempspec.reporting.console_tables import ComparisonTable
from tempspec.reporting.decoded_rows import decoded_rows
from tempspec.reporting.figures import temperature_figure, write_figure

__all__ = ["sentences", "show"]

_SHOWN = ("acceptance_rate", "block_efficiency", "speedup")


def show(before: Path, after: Path, folder: Path) -> None:
    """Print one table of two decodings of the same prompts and what it says, and draw their curves.

    Args:
        before: the predict folder of the undistilled draft.
        after: the predict folder of the distilled one.
        folder: gets `curves.png` and `curves.svg`.
    """
    first, second = (SweepMetrics.of_rows(_rows(path)) for path in (before, after))
    runs = {"before": first.estimates(), "distilled": second.estimates()}
    console = Console()
    console.print(ComparisonTable(runs, compare(first, second), metrics=_SHOWN))
    print()
    for sentence in sentences(first, second):
        print(textwrap.fill(sentence, min(console.width, 100), subsequent_indent="  "))
    write_figure(temperature_figure(runs), folder / "curves")


def sentences(before: SweepMetrics, after: SweepMetrics) -> list[str]:
    """What the table says of temperature, of distillation and of speed; no stronger than its intervals.

    Args:
        before: the undistilled draft, decoded at one prompt set with one verifier.
        after: the distilled one, with the same prompts.
    """
    cells = sorted((c for c in after.cells if c.verifier != BASELINE), key=lambda cell: cell.target_temperature)
    warm = [cell for cell in cells if cell.target_temperature > 0] or cells
    differences = compare(before, after)
    return [
        f"- Temperature: {_by_temperature(after, warm[0], warm[-1])}.",
        f"- Distillation: acceptance {_gain('acceptance_rate', cells, differences)}.",
        f"- Speed: {_speed(after, warm[0], warm[-1])}. By distillation it {_gain('speedup', cells, differences)}.",
    ]


def _by_temperature(metrics: SweepMetrics, low: Cell, high: Cell) -> str:
    """How the distilled draft's acceptance changes from one temperature to a higher one."""
    first, last = (metrics[cell].acceptance_rate for cell in (low, high))
    change = contrast((1, last.sums()), (-1, first.sums()))
    ends = [
        f"{metric.estimate().point()} at T = {cell.target_temperature:g}"
        for metric, cell in ((first, low), (last, high))
    ]
    verb = verdict(change) if shown(change) else "is not shown to change"
    return f"the distilled draft's acceptance {verb} from {ends[0]} to {ends[1]}, {change:+}"


def _gain(metric: str, cells: Sequence[Cell], differences: Mapping[Cell, Mapping[str, Estimate]]) -> str:
    """Where the distilled draft has more or less of something, and where no difference is shown."""
    places: dict[str, list[float]] = {}
    for cell in cells:
        found = verdict(differences[cell].get(metric, Estimate.nothing()))
        places.setdefault("is not shown to change" if found == "not shown" else found, []).append(
            cell.target_temperature
        )
    if list(places) == ["is not shown to change"]:
        return "is not shown to change at any T"
    *others, last = (f"{verb} {_at(some, len(cells))}" for verb, some in places.items())
    return f"{', '.join(others)}, and {last}" if others else last


def _at(temperatures: Sequence[float], all_: int) -> str:
    """`at T = 0, 0.5 and 1`.

    >>> _at([0, 0.5, 1], 4), _at([1.5], 4), _at([0, 1], 2)
    ('at T = 0, 0.5 and 1', 'at T = 1.5', 'at every T')
    """
    if len(temperatures) == all_:
        return "at every T"
    *others, last = (f"{temperature:g}" for temperature in temperatures)
    return f"at T = {', '.join(others)} and {last}" if others else f"at T = {last}"


def _speed(metrics: SweepMetrics, low: Cell, high: Cell) -> str:
    """How fast decoding is with the distilled draft at two temperatures."""
    first, last = (metrics.estimates()[cell].get("speedup", Estimate.nothing()) for cell in (low, high))
    at = [f"at T = {cell.target_temperature:g}" for cell in (low, high)]
    return f"decoding with the draft is {first} times as fast as without it {at[0]}, and {last} times {at[1]}"


def _rows(folder: Path) -> list[DecodedRow]:
    """The rows of a finished predict."""
    rows, notes = decoded_rows(folder / "predictions.parquet")
    for note in notes:
        print(f"{folder}: {note}")
    return rows
