"""Rows that another stage of the run has decoded with the same models, sampling and rule, taken over (floor 5)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.utilities import rank_zero_info

from tempspec.metrics.rows import former_columns
from tempspec.modules.predict.row_store import Origin, RowStore, merged_entry

__all__ = ["take_over"]

_LABEL = "verifier "
"""Begins an origin's entry for each label of a verifier."""


def take_over(store: RowStore, order: Sequence[str], origin: Origin, beside: Path) -> None:
    """Add the finished rows of another stage that would be decoded alike, under the labels that are used here.

    Args:
        store: where they go; rows that it has stay.
        order: the keys that are due.
        origin: what the rows of the store are made from.
        beside: the folder of the other stage.
    """
    labels = _labels(origin, _held(beside))
    here = dict.fromkeys(store.keys())
    wanted = {
        f"acceptance/{theirs}/{key.removeprefix(f'acceptance/{label}/')}": (key, label)
        for label, theirs in labels.items()
        for key in order
        if key.startswith(f"acceptance/{label}/") and key not in here
    }
    rows = _rows(beside / "predictions.parquet", list(wanted)) if wanted else []
    renamed = [row | dict(zip(("key", "verifier"), wanted[row["key"]], strict=True)) for row in rows]
    store.append(renamed)
    if renamed:
        rank_zero_info(f"{len(renamed)} of {len(order)} rows are taken from {beside}")


def _held(folder: Path) -> Mapping[str, object]:
    """What the other stage's rows were made from; nothing where that is unknown."""
    try:
        held = json.loads((folder / "predictions.origin.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _labels(origin: Origin, held: Mapping[str, object]) -> dict[str, str]:
    """Our labels of verifiers, and theirs of the same rule; none where models, sampling or prompts differ.

    >>> _labels({"target": "a", "verifier x": "Rule()"}, {"target": "a", "verifier y": "Rule()", "verifier z": "No()"})
    {'x': 'y'}
    >>> _labels({"target": "a", "verifier x": "Rule()"}, {"target": "b", "verifier y": "Rule()"})
    {}
    """
    shared = {name: entry for name, entry in origin.items() if not name.startswith(_LABEL)}
    if any(name not in held or merged_entry(held[name], entry) is None for name, entry in shared.items()):
        return {}
    theirs = {str(rule): name.removeprefix(_LABEL) for name, rule in held.items() if name.startswith(_LABEL)}
    ours = {name.removeprefix(_LABEL): str(rule) for name, rule in origin.items() if name.startswith(_LABEL)}
    return {label: theirs[rule] for label, rule in ours.items() if rule in theirs}


def _rows(path: Path, keys: list[str]) -> list[dict[str, Any]]:
    """The rows of these keys; none of a file that is not there, or of an earlier version."""
    try:
        if former_columns(pq.read_schema(path).names):
            return []
        return list(pq.read_table(path, filters=[("key", "in", keys)]).to_pylist())
    except (OSError, pa.ArrowInvalid):
        return []
