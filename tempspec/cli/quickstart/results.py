"""The quickstart's table and curves (floor 6)."""

from pathlib import Path

from rich.console import Console

from tempspec.metrics.collection import SweepMetrics, compare
from tempspec.metrics.rows import DecodedRow
from tempspec.reporting.console_tables import ComparisonTable
from tempspec.reporting.decoded_rows import decoded_rows
from tempspec.reporting.figures import temperature_figure, write_figure

__all__ = ["show"]


def show(before: Path, after: Path, folder: Path) -> None:
    """Print one table of two decodings of the same prompts and draw their curves.

    Args:
        before: the predict folder of the undistilled draft.
        after: the predict folder of the distilled one.
        folder: gets `curves.png` and `curves.svg`.
    """
    first, second = (SweepMetrics.of_rows(_rows(path)) for path in (before, after))
    runs = {"before": first.estimates(), "distilled": second.estimates()}
    Console().print(ComparisonTable(runs, compare(first, second)))
    png, _ = write_figure(temperature_figure(runs), folder / "curves")
    print(f"curves: {png}")


def _rows(folder: Path) -> list[DecodedRow]:
    """The rows of a finished predict."""
    rows, notes = decoded_rows(folder / "predictions.parquet")
    for note in notes:
        print(f"{folder}: {note}")
    return rows
