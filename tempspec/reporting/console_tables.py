"""Rich tables of estimates. They choose the layout that the console has room for (floor 5).

With room, an interval is beside its value; at 80 to 120 columns below it; in less, it is left out. Names wrap
between words and are never cut.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from tempspec.interfaces import BASELINE
from tempspec.metrics.acceptance_grid import GridEstimates
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell, at_slots
from tempspec.reporting.records import Estimates

__all__ = ["RULE", "ComparisonTable", "DecodingTable", "category_tables", "validation_table"]

RULE = box.Box("    \n    \n ── \n    \n    \n ── \n    \n    \n")
"""A rule below the head and between parts, and one space between columns."""

_COLUMNS = {
    "acceptance_rate": "acceptance rate",
    "analytic_acceptance": "analytic",
    "optimal_acceptance": "optimum",
    "accepted_length": "accepted length",
    "block_efficiency": "block efficiency",
    "total_variation_from_target": "TV from target",
    "kl_from_target": "KL from target",
    "tokens_per_second": "tokens/s",
    "speedup": "speed-up",
}

_OPTIONAL = ("optimal_acceptance", "total_variation_from_target", "kl_from_target")
"""Columns that only a table with such figures has: those of trees, and of lossy rules."""

Style = Callable[[Estimate, str], str]
"""(estimate, format spec) -> the text of a table's field."""


def _inline(estimate: Estimate, spec: str) -> str:
    return format(estimate, spec)


def _stacked(estimate: Estimate, spec: str) -> str:
    return f"{estimate.point(spec)}\n{estimate.interval()}".rstrip()


def _point(estimate: Estimate, spec: str) -> str:
    return estimate.point(spec)


@dataclass(frozen=True)
class _Layout:
    """How fields are written: one style, but for some metrics another, or None to leave their column out."""

    style: Style
    gap: int
    others: Mapping[str, Style | None] = field(default_factory=dict)

    def styles(self, columns: Iterable[str]) -> dict[str, Style]:
        """The style of every column shown."""
        chosen = {name: self.others.get(name.partition("_at_")[0], self.style) for name in columns}
        return {name: style for name, style in chosen.items() if style is not None}


_POINTS: Mapping[str, Style | None] = dict.fromkeys(_OPTIONAL, _point)

# From roomy to scant. The closed forms are sharper than the counts beside them, so their intervals go first.
_LAYOUTS = (
    _Layout(_inline, 2),
    _Layout(_stacked, 2, _POINTS),
    _Layout(_stacked, 2, {**_POINTS, "analytic_acceptance": _point}),
    _Layout(_stacked, 1, {**_POINTS, "analytic_acceptance": _point}),
    _Layout(_stacked, 1, {**_POINTS, "analytic_acceptance": None, "tokens_per_second": _point}),
    _Layout(_point, 1),
    _Layout(_point, 1, {"analytic_acceptance": None}),
    _Layout(_point, 1, dict.fromkeys(("analytic_acceptance", "accepted_length", "tokens_per_second"))),
)


@dataclass(frozen=True)
class _Line:
    """One line of a table: its labels, and its estimates by metric with their format."""

    labels: tuple[str, ...]
    metrics: Mapping[str, Estimate]
    spec: str = ""

    def field(self, name: str, style: Style) -> str:
        """What is in a metric's column."""
        return style(self.metrics.get(name, Estimate.nothing()), self.spec)


@dataclass(frozen=True)
class _Section:
    """Lines under one heading."""

    title: str
    lines: Sequence[_Line]


class _Sections:
    """Sections whose columns are aligned, in the first layout that fits the console."""

    def __init__(
        self,
        headings: Sequence[str],
        sections: Sequence[_Section],
        caption: str,
        batch: int,
        metrics: Sequence[str] | None = None,
    ) -> None:
        self.headings = headings
        self.sections = sections
        self.caption = caption
        lines = [line for section in sections for line in section.lines]
        known = {name for line in lines for name, estimate in line.metrics.items() if estimate.prompts}
        self.titles = _COLUMNS | _speed_titles(known, batch)
        optional = {*_OPTIONAL, "tokens_per_second", "speedup"}  # those of runs that timed nothing
        shown = self.titles if metrics is None else [name for name in metrics if name in self.titles]
        self.columns = [name for name in shown if name in known or name not in optional]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = (layout for layout in _LAYOUTS if self._total(layout) <= options.max_width)
        layout = next(fitting, _LAYOUTS[-1])
        for section in self.sections:
            yield self._table(section, layout)
            yield Text()
        yield Text(self.caption, style="dim")

    def _total(self, layout: _Layout) -> int:
        widths = self._widths(layout)
        return sum(widths) + layout.gap * (len(widths) - 1)

    def _widths(self, layout: _Layout) -> list[int]:
        """The width of each column over all sections: its widest field, or its title's longest word."""
        lines = [line for section in self.sections for line in section.lines]
        labels = [[name, *(line.labels[index] for line in lines)] for index, name in enumerate(self.headings)]
        columns = [
            [*self.titles[name].split(), *(part for line in lines for part in line.field(name, style).split("\n"))]
            for name, style in layout.styles(self.columns).items()
        ]
        return [max(map(len, column)) for column in [*labels, *columns]]

    def _table(self, section: _Section, layout: _Layout) -> Table:
        styles, widths = layout.styles(self.columns), self._widths(layout)
        table = Table(box=RULE, show_edge=False, padding=(0, layout.gap - 1, 0, 0), pad_edge=False)
        table.title, table.title_justify, table.title_style = section.title, "left", "bold"
        for heading, width in zip(self.headings, widths, strict=False):
            table.add_column(heading, width=width)
        for name, width in zip(styles, widths[len(self.headings) :], strict=True):
            table.add_column(self.titles[name], width=width, justify="right")
        for line in section.lines:
            table.add_row(*line.labels, *(line.field(name, style) for name, style in styles.items()))
        return table


class DecodingTable(_Sections):
    """The results of a predict run: a section for each verifier and prompt set, a line for each temperature.

    Args:
        estimates: by cell, from `SweepMetrics.estimates`.
        batch: the batch size of the timing pass.
    """

    def __init__(self, estimates: Estimates, *, batch: int = 1) -> None:
        several = any(cell.draft_temperature != cell.target_temperature for cell in estimates)
        sections = [
            _Section(_title(key), [_Line(_temperatures(cell, several), estimates[cell]) for cell in cells])
            for key, cells in _by_section(estimates)
        ]
        caption = _caption(estimates.values(), _overhead(estimates))
        super().__init__(("T", "T draft") if several else ("T",), sections, caption, batch)


class ComparisonTable(_Sections):
    """Two runs over the same prompts: for each temperature the one, the other, and their paired difference.

    Args:
        runs: estimates by cell of two runs, by the names to show.
        differences: paired differences, from `tempspec.metrics.collection.compare(first, second)`.
        batch: the batch size of the timing pass.
        metrics: names of the columns to show, in order; all of them where it is left out.

    Raises:
        ValueError: not two runs.
    """

    def __init__(
        self,
        runs: Mapping[str, Estimates],
        differences: Estimates,
        *,
        batch: int = 1,
        metrics: Sequence[str] | None = None,
    ) -> None:
        if len(runs) != 2:
            raise ValueError(f"expected two runs to compare, got {len(runs)}: {', '.join(runs) or 'none'}")
        several = any(cell.draft_temperature != cell.target_temperature for cell in differences)
        sections = [
            _Section(_title(key), [line for cell in cells for line in _lines(cell, runs, differences, several)])
            for key, cells in _by_section(differences)
        ]
        headings = ("T", "T draft", "draft") if several else ("T", "draft")
        caption = _caption(differences.values(), "; differences are paired")
        super().__init__(headings, sections, caption, batch, metrics)


def _speed_titles(known: Iterable[str], batch: int) -> dict[str, str]:
    """The titles of what was timed, with the batch size: of speed-ups only where there are several sizes."""
    sizes = sorted({int(name.partition("_at_")[2]) for name in known if "_at_" in name})
    titles = {"tokens_per_second": f"tokens/s\nbatch {batch}"}
    if sizes:
        titles["speedup"] = f"speed-up\nbatch {batch}"
    for size in sizes:
        titles |= {at_slots("tokens_per_second", size): f"tokens/s\nbatch {size}"}
        titles |= {at_slots("speedup", size): f"speed-up\nbatch {size}"}
    return titles


def _lines(cell: Cell, runs: Mapping[str, Estimates], differences: Estimates, several: bool) -> Iterator[_Line]:
    temperatures = _temperatures(cell, several)
    blank = ("",) * len(temperatures)
    for index, (name, estimates) in enumerate(runs.items()):
        yield _Line((*(blank if index else temperatures), name), estimates.get(cell, {}))
    yield _Line((*blank, "difference"), differences[cell], "+")


def _by_section(cells: Iterable[Cell]) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    """Cells by (verifier, prompt set), in the order in which these first come; temperatures ascend.

    Plain decoding gets no lines: it drafts nothing, and its speed is the denominator of every speed-up.
    """
    listed = [cell for cell in cells if cell.verifier != BASELINE]
    first = {key: index for index, key in reversed(list(enumerate((c.verifier, c.prompt_set) for c in listed)))}
    listed.sort(key=lambda c: (first[c.verifier, c.prompt_set], c.target_temperature, c.draft_temperature))
    for key, group in groupby(listed, lambda cell: (cell.verifier, cell.prompt_set)):
        yield key, list(group)


def _title(key: tuple[str, str]) -> str:
    return f"{key[0]}, {key[1]}"


def _temperatures(cell: Cell, several: bool) -> tuple[str, ...]:
    shown = (f"{cell.target_temperature:g}", f"{cell.draft_temperature:g}")
    return shown if several else shown[:1]


def _caption(found: Iterable[Mapping[str, Estimate]], more: str = "") -> str:
    """What the intervals are, and over how many prompts."""
    listed = list(found)
    decoded, timed = (
        {metrics[name].prompts for metrics in listed if name in metrics and metrics[name].prompts}
        for name in ("block_efficiency", "tokens_per_second")
    )
    shown = [f"{_span(decoded)} prompts"] if decoded else []
    shown += [f"speed over {_span(timed)}"] if timed else []
    return f"95% bootstrap intervals over {', '.join(shown)}{more}" if shown else ""


def _overhead(estimates: Estimates) -> str:
    """Where speculative decoding's time went, as far as it was not in the models: the widest range of any cell."""
    drafting = [metrics for cell, metrics in estimates.items() if cell.verifier != BASELINE]
    shares = [m["overhead_share"].value for m in drafting if "overhead_share" in m and m["overhead_share"].prompts]
    if not shares:
        return ""
    ends = dict.fromkeys(f"{100 * share:.0f}%" for share in (min(shares), max(shares)))
    return f"; {' to '.join(ends)} of its seconds outside the models' forward passes"


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def category_tables(estimates: Estimates, metric: str = "block_efficiency") -> list[ConsoleRenderable]:
    """A metric by category (rows) and temperatures (columns), a table for each verifier and prompt set.

    Args:
        estimates: by cell of a category, from `SweepMetrics.of_rows(rows, cell=category_cell_of)`.
        metric: a name of `DecodingMetrics.estimates`.
    """
    several = any(cell.draft_temperature != cell.target_temperature for cell in estimates)
    return [
        _ByCategory(f"{_title(key)}: {_COLUMNS.get(metric, metric)} by category", cells, estimates, metric, several)
        for key, cells in _by_section(estimates)
    ]


class _ByCategory:
    """A metric by category and pair of temperatures: with intervals below the values where there is room for them."""

    def __init__(self, title: str, cells: Sequence[Cell], estimates: Estimates, metric: str, several: bool) -> None:
        self.title = title
        self.pairs = list(dict.fromkeys(_temperatures(cell, several) for cell in cells))
        self.found: dict[str, dict[tuple[str, ...], Estimate]] = {}
        for cell in cells:
            self.found.setdefault(cell.category, {})[_temperatures(cell, several)] = estimates[cell][metric]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stacked = self._table(_stacked, gap=2)
        fits = console.measure(stacked, options=options.update(max_width=10_000)).maximum <= options.max_width
        yield stacked if fits else self._table(_point, gap=1)
        yield Text()

    def _table(self, style: Style, gap: int) -> Table:
        table = Table(box=RULE, show_edge=False, padding=(0, gap - 1, 0, 0), pad_edge=False)
        table.title, table.title_justify, table.title_style = self.title, "left", "bold"
        table.add_column("category")
        for pair in self.pairs:
            table.add_column("T = " + "\ndraft ".join(pair), justify="right", no_wrap=True)
        for category, found in self.found.items():
            table.add_row(category, *(style(found.get(pair, Estimate.nothing()), "") for pair in self.pairs))
        return table


def validation_table(grid: GridEstimates, *, title: str) -> Table:
    """Analytic acceptance by draft temperature (rows) and target temperature (columns), with its context rows.

    The best draft temperature of each column is bold; `argmax draft` accepts p of the draft's most likely token,
    `sampled match` is `sum p q` at equal temperatures.

    Args:
        grid: from `AcceptanceGrid.grid`.
        title: such as the name of the prompt set.
    """
    widest = max((e.high - e.low for e in grid.acceptance.values() if e.high >= e.low), default=float("nan")) / 2
    prompts = max((estimate.prompts for estimate in grid.acceptance.values()), default=0)
    caption = f"{prompts} prompts" if widest != widest else f"{prompts} prompts; 95% intervals at most ±{widest:.3f}"
    table = Table(box=RULE, show_edge=False, pad_edge=False, caption=caption, caption_justify="left")
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column("target T →\ndraft T ↓", no_wrap=True)
    for target in grid.target_temperatures:
        table.add_column(f"{target:g}", justify="right", vertical="bottom", no_wrap=True)
    for draft in grid.draft_temperatures:
        table.add_row(f"{draft:g}", *(_best_bold(grid, target, draft) for target in grid.target_temperatures))
    table.add_section()
    for name, row in (("argmax draft", grid.argmax), ("sampled match", grid.match), ("entropy, nats", grid.entropy)):
        table.add_row(name, *(row[target].point() for target in grid.target_temperatures))
    return table


def _best_bold(grid: GridEstimates, target: float, draft: float) -> Text:
    best = max(grid.acceptance[target, other].value for other in grid.draft_temperatures)
    estimate = grid.acceptance[target, draft]
    return Text(estimate.point(), style="bold" if estimate.value == best else "")
