"""Tables that are written once and shown three ways: HTML, CSV, LaTeX (floor 5)."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tempspec.metrics.bootstrap import FEWEST, Estimate

__all__ = ["Field", "Noted", "Sheet", "counted", "to_csv", "to_latex"]


@dataclass(frozen=True)
class Noted:
    """An estimate with words on a line below it."""

    estimate: Estimate
    note: str


Field = str | float | Estimate | Noted


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: the stem of its files.
        title: what it shows.
        columns: their headings.
        rows: fields, one a column.
        signed: estimates are differences and show their sign.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Field]]
    signed: bool = False

    @property
    def caption(self) -> str:
        """The title, with how many prompts the estimates rest on, if there are any."""
        fields = [field.estimate if isinstance(field, Noted) else field for row in self.rows for field in row]
        estimates = [field for field in fields if isinstance(field, Estimate)]
        few = f"; no interval below {FEWEST}" if any(0 < each.prompts < FEWEST for each in estimates) else ""
        return f"{self.title} ({counted(estimates)}{few})" if estimates else self.title

    def lines(self, field: Field) -> list[str]:
        """A field as a reader sees it, with its note on a second line."""
        if isinstance(field, Noted):
            return [*self.lines(field.estimate), field.note]
        if isinstance(field, Estimate):
            return [format(field, "+" if self.signed else "")]
        return [f"{field:g}" if isinstance(field, float) else field]


def counted(estimates: Iterable[Estimate]) -> str:
    """How many prompts estimates rest on; those on none are not counted.

    >>> counted([Estimate(0.5, 0.4, 0.6, 9), Estimate(0.5, 0.4, 0.6, 24), Estimate.nothing()])
    'n = 9-24 prompts'
    """
    counts = sorted({estimate.prompts for estimate in estimates if estimate.prompts}) or [0]
    return f"n = {'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} prompts"


def to_csv(sheet: Sheet) -> str:
    """The table with full precision; an estimate takes four columns, its note a fifth, NaN is an empty field.

    >>> print(to_csv(Sheet("t", "T", ["T", "rate"], [[1.0, Estimate(0.5, 0.4, 0.6, 9)]])), end="")
    T,rate,rate low,rate high,rate n
    1.0,0.5,0.4,0.6,9
    """
    columns = range(len(sheet.columns))
    widths = [max((len(_numbers(row[index])) for row in sheet.rows), default=1) for index in columns]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name + tail for name, width in zip(sheet.columns, widths, strict=True) for tail in _TAILS[:width]])
    for row in sheet.rows:
        cells = [_numbers(field) + [""] * width for field, width in zip(row, widths, strict=True)]
        writer.writerow([cell for part, width in zip(cells, widths, strict=True) for cell in part[:width]])
    return buffer.getvalue()


def to_latex(sheet: Sheet) -> str:
    r"""The table for LaTeX's booktabs; whatever LaTeX would read as a command is escaped.

    >>> print(to_latex(Sheet("t", "T", ["a_b"], [["50%"]])), end="")
    % T
    \begin{tabular}{l}
    \toprule
    a\_b \\
    \midrule
    50\% \\
    \bottomrule
    \end{tabular}
    """
    lines = [
        f"% {sheet.caption}",
        rf"\begin{{tabular}}{{{'l' * len(sheet.columns)}}}",
        r"\toprule",
        _latex_line(sheet.columns),
        r"\midrule",
        *(_latex_line(line) for row in sheet.rows for line in zip_longest(*map(sheet.lines, row), fillvalue="")),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {letter: rf"\{letter}" for letter in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}"}  # after a line's end [ begins an option


def _latex_line(fields: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in field) for field in fields) + r" \\"


_TAILS = ("", " low", " high", " n", " note")


def _numbers(field: Field) -> list[str | float]:
    """A field by columns: of an estimate value, low, high, n; whatever is not known is empty."""
    if isinstance(field, Noted):
        return [*_numbers(field.estimate), field.note]
    if not isinstance(field, Estimate):
        return [field]
    ends = ["" if math.isnan(end) else end for end in (field.value, field.low, field.high)]
    return [*ends, str(field.prompts)]
