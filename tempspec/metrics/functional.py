"""The counts behind every decoding metric: a row in, numerators and denominators out (floor 4).

Each function returns `(numerator, denominator)`, lists of S numbers; a metric is the ratio of their sums over rows.
The classes of `tempspec.metrics.decoding` remember options and keep the sums. A *round* is one target call. A drafted
token is *tested* if every earlier one of its round was accepted.
"""

import math

from tempspec.metrics.rows import DecodedRow

__all__ = [
    "Counts",
    "acceptance_rate_counts",
    "accepted_length_counts",
    "accepted_length_histogram_counts",
    "analytic_acceptance_counts",
    "block_efficiency_counts",
    "conditional_acceptance_counts",
    "draft_acceptance_counts",
    "foreseen_length_counts",
    "kl_from_target_counts",
    "mbsu_counts",
    "optimal_acceptance_counts",
    "overhead_share_counts",
    "tokens_per_second_counts",
    "total_variation_from_target_counts",
]

Counts = tuple[list[float], list[float]]


def acceptance_rate_counts(row: DecodedRow) -> Counts:
    """Accepted tokens, out of tested ones."""
    return [sum(row["accepted"])], [sum(row["tested"])]


def analytic_acceptance_counts(row: DecodedRow) -> Counts:
    """Expected acceptances, out of tested tokens; nothing for a row without them."""
    return [sum(row["expected"])], [sum(row["tested"]) if row["expected"] else 0]


def foreseen_length_counts(row: DecodedRow) -> Counts:
    """Expected accepted lengths, out of the rounds that have one."""
    foreseen = row.get("foreseen", [])
    return [sum(foreseen)], [len(foreseen)]


def optimal_acceptance_counts(row: DecodedRow) -> Counts:
    """What the optimal transport accepts of a tree's siblings, out of tested tokens; nothing for a row without it."""
    optimum = row.get("optimum", [])
    return [sum(optimum)], [sum(row["tested"]) if optimum else 0]


def total_variation_from_target_counts(row: DecodedRow) -> Counts:
    """TV between the emitted and the target's law, out of tested tokens; nothing for a row without it."""
    return _distance(row, row.get("total_variation", []))


def kl_from_target_counts(row: DecodedRow) -> Counts:
    """KL(emitted || target), out of tested tokens; nothing for a row without it, NaN where it is infinite.

    Infinity times a bootstrap weight of 0 has no value, and JSON has no infinity: both are spared by NaN.
    """
    return _distance(row, [value if math.isfinite(value) else math.nan for value in row.get("kl", [])])


def draft_acceptance_counts(row: DecodedRow) -> Counts:
    """Accepted tokens, out of drafted ones."""
    return [sum(row["accepted"])], [sum(row["drafted"])]


def accepted_length_counts(row: DecodedRow) -> Counts:
    """Accepted tokens, out of rounds."""
    return [sum(row["accepted"])], [len(row["accepted"])]


def block_efficiency_counts(row: DecodedRow) -> Counts:
    """Emitted tokens, out of target calls."""
    return [len(row["tokens"])], [len(row["drafted"])]


def mbsu_counts(row: DecodedRow, parameter_ratio: float) -> Counts:
    """Emitted tokens, out of forward passes, the draft's counted as `parameter_ratio` of the target's."""
    return [len(row["tokens"])], [len(row["drafted"]) + parameter_ratio * sum(row["drafted"])]


def conditional_acceptance_counts(row: DecodedRow, longest: int) -> Counts:
    """Rounds that accepted position i, out of those that tested it, i = 1..longest."""
    return _reached(row["accepted"], longest), _reached(row["tested"], longest)


def accepted_length_histogram_counts(row: DecodedRow, longest: int) -> Counts:
    """Rounds that accepted exactly j tokens, out of all rounds, j = 0..longest."""
    accepted = row["accepted"]
    return [accepted.count(length) for length in range(longest + 1)], [len(accepted)] * (longest + 1)


def tokens_per_second_counts(row: DecodedRow) -> Counts:
    """Emitted tokens, out of seconds of wall clock, the prefill included."""
    return [len(row["tokens"])], [_seconds(row)]


def overhead_share_counts(row: DecodedRow) -> Counts:
    """Seconds outside the models' forward passes, out of all seconds."""
    return [row["seconds_overhead"]], [_seconds(row)]


def _distance(row: DecodedRow, distance: list[float]) -> Counts:
    return [sum(distance)], [sum(row["tested"]) if distance else 0]


def _seconds(row: DecodedRow) -> float:
    return row["seconds_prefill"] + row["seconds_draft"] + row["seconds_verify"] + row["seconds_overhead"]


def _reached(length: list[int], longest: int) -> list[float]:
    """How many rounds reached position i, i = 1..longest."""
    return [sum(got >= position for got in length) for position in range(1, longest + 1)]
