"""The drafts on the target's own text, as tables for a console of any width (floor 5)."""

from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tempspec.metrics.bootstrap import Estimate
from tempspec.reporting.console_tables import RULE
from tempspec.reporting.own_text import ROUNDS, DraftLine, OwnText
from tempspec.reporting.page_tables import Noted, counted

__all__ = ["OwnTextTable"]

_SHOWN = "not shown"
_SEEDS = "95% intervals over prompts, and the single seeds"
_SIGNS = "paired by prompt, on the seeds that both have; k of n: seeds whose difference has the same sign"
_ROUNDS = "a round: 1, and for each drafted token the product of its acceptance and those before it"
_NARROW = "a wider console shows intervals and seeds"


class OwnTextTable:
    """A measure of each draft by temperature, and below it the differences to one draft.

    With room, an interval is beside its value; else below it; in even less it is left out, and so are single seeds.

    Args:
        own: what was found.
    """

    def __init__(self, own: OwnText) -> None:
        self.own = own

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        own, room = self.own, (console, options)
        prompts = counted(found.estimate for line in own.values for found in line.at.values())
        rounds = f"; {_ROUNDS}" if own.measure == ROUNDS else ""
        yield from _fitting(own.title, own.temperatures, own.values, "", f"{prompts}; {_SEEDS}{rounds}", *room)
        if own.unmeasured:
            yield Text(f"not measured: {', '.join(own.unmeasured)}", style="dim")
        if own.differences:
            yield Text()
            yield from _fitting(own.contrast, own.temperatures, own.differences, "+", _SIGNS, *room)


_Style = Callable[[Noted, str], str]


def _inline(found: Noted, spec: str) -> str:
    return f"{found.estimate:{spec}}\n{found.note}"


def _stacked(found: Noted, spec: str) -> str:
    interval = found.estimate.interval()
    kept = found.note.replace(" of ", "\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}")
    lines = [found.estimate.point(spec), interval, *wrap(kept, max(len(interval), len(_SHOWN) + 1))]
    return "\n".join(filter(None, lines)).replace("\N{NO-BREAK SPACE}", " ")


def _points(found: Noted, spec: str) -> str:
    return found.estimate.point(spec) + (f"\n{_SHOWN}" if found.note.startswith(_SHOWN) else "")


_LAYOUTS: Sequence[tuple[_Style, int]] = ((_inline, 2), (_stacked, 2), (_stacked, 1), (_points, 1))
"""From roomy to scant: how an estimate is written, and the space between columns."""


def _fitting(
    title: str,
    temperatures: Sequence[float],
    lines: Sequence[DraftLine],
    spec: str,
    caption: str,
    console: Console,
    options: ConsoleOptions,
) -> Iterator[Table | Text]:
    """The table in the first layout that fits, and its caption."""
    free = options.update(max_width=10_000)
    for style, gap in _LAYOUTS:
        table = _table(temperatures, lines, spec, style, gap)
        if console.measure(table, options=free).maximum <= options.max_width:
            break
    yield Text(title, style="bold")
    yield table
    yield Text(_NARROW if style is _points else caption, style="dim")


def _table(temperatures: Sequence[float], lines: Sequence[DraftLine], spec: str, style: _Style, gap: int) -> Table:
    table = Table(box=RULE, show_edge=False, padding=(0, gap - 1, 0, 0), pad_edge=False)
    table.add_column("draft")
    for t in temperatures:
        table.add_column(f"T = {t:g}", justify="right", no_wrap=True)
    nothing = Noted(Estimate.nothing(), "")
    for line in lines:
        fields = (style(line.at.get(t, nothing), spec) for t in temperatures)
        table.add_row(*map(Text, (f"{line.name}\n{line.seeds}", *fields)))
    return table
