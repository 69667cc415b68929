"""A small table of estimates: for a notebook, a script, a data frame (floor 4).

It knows no metric: a line is labels and estimates by name. The pages and the console tables of the command line are
`tempspec.reporting`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tempspec.errors import UserError
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell

__all__ = ["Line", "ResultTable", "cells_table"]

Label = str | float

_PRINTED = ("acceptance_rate", "block_efficiency", "tokens_per_second", "speedup")
"""What a table of decoding metrics prints; its rows have all."""
_HEADINGS = {
    "target_temperature": "T",
    "draft_temperature": "T draft",
    "prompt_set": "set",
    "tokens_per_second": "tokens/s",
    "speedup": "speed-up",
}


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        labels: what it is of, by name.
        estimates: what was found, by the metric's name.
    """

    labels: Mapping[str, Label]
    estimates: Mapping[str, Estimate]

    def row(self) -> dict[str, Any]:
        """The labels, and of every metric its value and the ends of its interval (`NAME_low`, `NAME_high`)."""
        found: dict[str, Any] = dict(self.labels)
        for name, estimate in self.estimates.items():
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return found | {"prompts": max((estimate.prompts for estimate in self.estimates.values()), default=0)}


@dataclass(frozen=True, repr=False)
class ResultTable(Sequence[dict[str, Any]]):
    """Estimates by label, as rows, as a data frame, or printed; a sequence of its rows.

    Args:
        title: what is above it when it is printed.
        lines: the labels and estimates of each.
        printed: the metrics that are printed, in their order; all by default.
        across: a label whose values are printed as columns; for tables of one metric.

    >>> line = Line({"set": "chat", "temperature": 1.0}, {"acceptance": Estimate(0.7, 0.6, 0.8, prompts=9)})
    >>> table = ResultTable("acceptance", [line])
    >>> table.rows
    [{'set': 'chat', 'temperature': 1.0, 'acceptance': 0.7, 'acceptance_low': 0.6, 'acceptance_high': 0.8,
      'prompts': 9}]
    >>> table.one(temperature=1.0)["acceptance"]
    0.7
    """

    title: str
    lines: Sequence[Line]
    printed: Sequence[str] | None = None
    across: str | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every line as a plain dict; see `Line.row`."""
        return [line.row() for line in self.lines]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        """A row, or several."""
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def one(self, **labels: Label) -> dict[str, Any]:
        """The one row with these labels.

        Raises:
            UserError: there is none, or there are several.
        """
        found = [line.row() for line in self.lines if labels.items() <= line.labels.items()]
        if len(found) != 1:
            names = ", ".join(dict.fromkeys(name for line in self.lines for name in line.labels))
            raise UserError(f"expected one row with {labels}, got {len(found)}: choose by {names}")
        return found[0]

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs pandas, got none: pip install pandas, or take rows") from error
        return pandas.DataFrame(self.rows)

    def __rich__(self) -> Table:
        lines = self.lines if self.across is None else list(_spread(self.lines, self.across))
        known = dict.fromkeys(name for line in lines for name, found in line.estimates.items() if found.prompts)
        names = [name for name in self.printed or known if name in known]
        labels = list(dict.fromkeys(name for line in lines for name in line.labels))
        table = Table(box=box.SIMPLE, title=self.title, title_justify="left", title_style="bold", pad_edge=False)
        for label in labels:
            table.add_column(_heading(label), no_wrap=True)
        for name in names:
            table.add_column(_heading(name), justify="right")
        nothing = Estimate.nothing()
        for line in lines:
            told = [_told(line.labels.get(label, "")) for label in labels]
            table.add_row(*told, *(str(line.estimates.get(name, nothing)) for name in names))
        return table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as text:
            console.print(self)
        return "\n".join(line.rstrip() for line in text.get().split("\n") if line.strip())

    __repr__ = __str__  # what a notebook shows


def cells_table(title: str, found: Mapping[Cell, Mapping[str, Estimate]]) -> ResultTable:
    """The estimates of a sweep, one line per cell, from `SweepMetrics.estimates`."""
    several = any(cell.category for cell in found)
    lines = [Line({k: v for k, v in asdict(cell).items() if several or k != "category"}, found[cell]) for cell in found]
    return ResultTable(title, lines, _PRINTED)


def _spread(lines: Sequence[Line], across: str) -> Iterator[Line]:
    """Lines of one metric, those alike but for a label as one: the label's values name its estimates."""
    found: dict[tuple[tuple[str, Label], ...], dict[str, Estimate]] = {}
    for line in lines:
        key = tuple((name, label) for name, label in line.labels.items() if name != across)
        (estimate,) = line.estimates.values()
        found.setdefault(key, {})[f"{_heading(across)} {_told(line.labels[across])}"] = estimate
    for key, estimates in found.items():
        yield Line(dict(key), estimates)


def _heading(name: str) -> str:
    return _HEADINGS.get(name, name.replace("_", " "))


def _told(label: Label) -> str:
    return label if isinstance(label, str) else f"{label:g}"
