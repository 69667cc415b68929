"""Flat files of a run's estimates: summary.csv, metrics.json and acceptance.parquet (floor 5).

All are written beside their place and moved there, so that a reader never sees half of one.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tempspec.files import write_atomically
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell

if TYPE_CHECKING:  # it would import torchmetrics, and that matplotlib.pyplot
    from tempspec.metrics.prefixes import PromptSums

__all__ = [
    "Estimates",
    "first_token_text",
    "prompt_rows",
    "summary_rows",
    "write_metrics_json",
    "write_parquet",
    "write_summary_csv",
]

Estimates = Mapping[Cell, Mapping[str, Estimate]]
"""What `SweepMetrics.estimates` returns."""

_GRID_METRICS = {
    "acceptance": "analytic_acceptance",
    "argmax": "argmax_acceptance",
    "match": "sampled_match_acceptance",
    "entropy": "target_entropy",
}
"""The grid's names to those of metrics.json."""

_COLUMNS = (
    "verifier",
    "prompt_set",
    "target_temperature",
    "draft_temperature",
    "category",
    "metric",
    "value",
    "low",
    "high",
    "prompts",
)


def summary_rows(estimates: Estimates) -> list[dict[str, Any]]:
    """One flat record for each metric of each cell: the cell's fields, `metric`, and the estimate's fields.

    >>> from tempspec.metrics.bootstrap import Estimate
    >>> summary_rows({Cell("block", "code", 1.0, 0.5): {"acceptance_rate": Estimate(0.7, 0.6, 0.8, 9)}})
    [{'verifier': 'block', 'prompt_set': 'code', 'target_temperature': 1.0, 'draft_temperature': 0.5,
      'category': '', 'metric': 'acceptance_rate', 'value': 0.7, 'low': 0.6, 'high': 0.8, 'prompts': 9}]
    """
    return [
        asdict(cell) | {"metric": name} | estimate.to_dict()
        for cell, metrics in estimates.items()
        for name, estimate in metrics.items()
    ]


def write_summary_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of `summary_rows`; NaN becomes an empty field."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if _is_nan(value) else value for name, value in row.items()} for row in rows)
    write_atomically(path, buffer.getvalue())


def write_metrics_json(path: Path, estimates: Estimates, **facts: Any) -> None:
    """Write every cell with its metrics by name, after facts of the run; NaN becomes null.

    Args:
        path: the file.
        estimates: by cell.
        facts: anything that json can write, such as `timing_batch=1`.
    """
    cells = [
        asdict(cell) | {"metrics": {name: estimate.to_dict() for name, estimate in metrics.items()}}
        for cell, metrics in estimates.items()
    ]
    text = json.dumps(_nulls(facts | {"cells": cells}), indent=1, allow_nan=False)
    write_atomically(path, text + "\n")


def prompt_rows(
    prompt_set: str, found: Mapping[tuple[str, float, float], "PromptSums"]
) -> list[dict[str, str | int | float]]:
    """One flat record for each prompt, metric and pair of temperatures of a set that `validate` measured.

    `prompt_set`, `prompt_key`, `metric` (named as in metrics.json), `target_temperature`, `draft_temperature`, and
    `numerator` over `denominator`: the value summed over the prompt's tokens, and how many these are. A metric's
    estimate in metrics.json is the ratio of the two columns' sums.

    Args:
        prompt_set: the set's name.
        found: what `AcceptanceGrid.by_prompt` returned.
    """
    return [
        {
            "prompt_set": prompt_set,
            "prompt_key": key,
            "metric": _GRID_METRICS[metric],
            "target_temperature": target,
            "draft_temperature": draft,
            "numerator": numerator,
            "denominator": denominator,
        }
        for (metric, target, draft), sums in found.items()
        for key, (numerator,), (denominator,) in zip(*(part.tolist() for part in sums), strict=True)
    ]


def first_token_text(name: str) -> str:
    """The text of a head's first drafted token, from the name of a later one's; empty of any other name.

    >>> first_token_text("chat sampled@1/2"), first_token_text("chat sampled@1")
    ('chat sampled@1', '')
    """
    text, _, number = name.rpartition("/")
    return text if number.isdigit() else ""


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    write_atomically(path, buffer.getvalue())


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _nulls(value: Any) -> Any:
    """The value with None for every NaN: JSON has none."""
    if isinstance(value, Mapping):
        return {key: _nulls(entry) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_nulls(entry) for entry in value]
    return None if _is_nan(value) else value
