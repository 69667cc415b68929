"""What one row counts: the few quantities that every decoding metric is a ratio of (floor 4).

A metric of `tempspec.metrics.decoding` names two of them, its numerator and its denominator, each summed over rows. A
*round* is one target call. A drafted token is *tested* if every earlier one of its round was accepted.

Axes: S entries of a metric, 1 or one per position.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from tempspec.metrics.rows import DecodedRow

__all__ = ["Count", "Counts", "Ratio", "finite_total", "number", "seconds", "total"]

Count = Callable[[DecodedRow], float]
"""What a row adds to a sum."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric of one number: the sum of one count over rows, divided by the sum of another.

    Attributes:
        numerator: what is counted.
        over: out of how much, at least 0.
    """

    numerator: Count
    over: Count = field(kw_only=True)


class Counts(NamedTuple):
    """What one row adds to the sums of a metric.

    Attributes:
        numerator_S: what was counted.
        denominator_S: out of how much, at least 0.
    """

    numerator_S: Sequence[float]
    denominator_S: Sequence[float]


def total(column: str, *, where: str | None = None) -> Count:
    """The sum of a column's entries; of a column that rows may lack, 0 without it.

    Args:
        column: whose entries.
        where: another column: a row counts 0 where this one has no entries.

    >>> total("accepted")({"accepted": [1, 3]}), total("expected_length")({"accepted": [1, 3]})
    (4, 0)
    >>> total("tested", where="expected_acceptance")({"tested": [2, 3], "expected_acceptance": []})
    0
    """
    return lambda row: sum(_entries(row, column)) if where is None or _entries(row, where) else 0


def finite_total(column: str) -> Count:
    """As `total`, but NaN with an infinite entry.

    Infinity times a bootstrap weight of 0 has no value, and JSON has no infinity: both are spared by NaN.

    >>> finite_total("kl")({"kl": [0.5, float("inf")]})
    nan
    """
    return lambda row: sum(value if math.isfinite(value) else math.nan for value in _entries(row, column))


def number(column: str) -> Count:
    """How many entries a column has: tokens, or rounds; of a column that rows may lack, 0 without it.

    >>> number("tokens")({"tokens": [5, 6, 7]})
    3
    """
    return lambda row: len(_entries(row, column))


def seconds(*parts: str) -> Count:
    """Seconds of wall clock spent in these parts: `prefill`, `draft`, `verify`, `overhead`.

    >>> seconds("draft", "verify")({"seconds_draft": 0.5, "seconds_verify": 0.25})
    0.75
    """
    return lambda row: sum(cast(Any, row)[f"seconds_{part}"] for part in parts)


def _entries(row: DecodedRow, column: str) -> Sequence[float]:
    found = cast(dict[str, Sequence[float]], row)
    return found.get(column, ()) if column in DecodedRow.__optional_keys__ else found[column]
