"""Tables that are written once and shown three ways: HTML, CSV, LaTeX (floor 5)."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tempspec.metrics.bootstrap import FEWEST, Estimate

__all__ = ["Field", "Sheet", "counted", "to_csv", "to_latex"]

Field = str | float | Estimate


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
        estimates = [field for row in self.rows for field in row if isinstance(field, Estimate)]
        few = f"; no interval below {FEWEST}" if any(0 < each.prompts < FEWEST for each in estimates) else ""
        return f"{self.title} ({counted(estimates)}{few})" if estimates else self.title

    def text(self, field: Field) -> str:
        """A field as a reader sees it."""
        if isinstance(field, Estimate):
            return format(field, "+" if self.signed else "")
        return f"{field:g}" if isinstance(field, float) else field


def counted(estimates: Iterable[Estimate]) -> str:
    """How many prompts estimates rest on; those on none are not counted.

    >>> counted([Estimate(0.5, 0.4, 0.6, 9), Estimate(0.5, 0.4, 0.6, 24), Estimate.nothing()])
    'n = 9-24 prompts'
    """
    counts = sorted({estimate.prompts for estimate in estimates if estimate.prompts}) or [0]
    return f"n = {'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} prompts"


def to_csv(sheet: Sheet) -> str:
    """The table with full precision; an estimate takes four columns, NaN is an empty field.

    >>> print(to_csv(Sheet("t", "T", ["T", "rate"], [[1.0, Estimate(0.5, 0.4, 0.6, 9)]])), end="")
    T,rate,rate low,rate high,rate n
    1.0,0.5,0.4,0.6,9
    """
    wide = [any(isinstance(row[index], Estimate) for row in sheet.rows) for index in range(len(sheet.columns))]
    heads = [
        [name, f"{name} low", f"{name} high", f"{name} n"] if several else [name]
        for name, several in zip(sheet.columns, wide, strict=True)
    ]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for head in heads for name in head])
    for row in sheet.rows:
        cells = [_numbers(field) if several else [field] for field, several in zip(row, wide, strict=True)]
        writer.writerow([cell for part in cells for cell in part])
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
        *(_latex_line([sheet.text(field) for field in row]) for row in sheet.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {letter: rf"\{letter}" for letter in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}"}  # after a line's end [ begins an option


def _latex_line(fields: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in field) for field in fields) + r" \\"


def _numbers(field: Field) -> list[Field]:
    """Value, low, high, n; whatever is not known is empty."""
    if not isinstance(field, Estimate):
        return [field, "", "", ""]
    ends = ["" if math.isnan(end) else end for end in (field.value, field.low, field.high)]
    return [*ends, str(field.prompts)]
