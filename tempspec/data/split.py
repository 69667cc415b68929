"""A deterministic split by content: a row's side depends on its text and the seed, and no text is on both (floor 5).

Of the company it depends only where a side would be empty, or the held-out one larger than it may be: those rows are
held out whose texts come first in an order that the seed decides.
"""

import json
from typing import Any

import datasets
import numpy as np

from tempspec.data.digest import unit_interval
from tempspec.data.sources import messages_of


def identity(row: dict[str, Any]) -> str:
    """What decides a row's side: its text, its prompt, or its conversation before the last turn.

    Rows with one prompt and different responses go to the same side, so that nothing leaks.
    """
    if "text" in row:
        return str(row["text"])
    if "prompt" in row:
        return str(row["prompt"])
    messages, _ = messages_of(row)
    return json.dumps(messages[:-1] or messages, sort_keys=True)


def hold_out(
    dataset: datasets.Dataset, fraction: float, seed: int, most: int | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split into (kept, held out), both in the order of the dataset.

    Rows are distinguished by what `identity` says of them. Where there are two such contents or more, neither side is
    empty; a single one is kept.

    Args:
        dataset: rows in one of the normal forms of `tempspec.data.sources`.
        fraction: the share of distinct contents that is held out, 0 to 1; 0 holds out none.
        seed: another seed holds out other rows.
        most: rows that are held out at most, those of the first content in any case; None for no limit.
    """
    place_R = np.array([unit_interval(identity(row), seed) for row in dataset])
    place_C, count_C = np.unique(place_R, return_counts=True)
    held = int((place_C < fraction).sum())
    if fraction > 0:
        held = min(max(held, 1), max(len(place_C) - 1, 0))
    if most is not None:
        held = min(held, max(1, int((count_C.cumsum() <= most).sum())))
    out_R = place_R < (place_C[held] if held < len(place_C) else np.inf)
    return dataset.select(np.flatnonzero(~out_R)), dataset.select(np.flatnonzero(out_R))
