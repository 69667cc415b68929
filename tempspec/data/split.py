"""A deterministic split by content: a row's side depends on its text and the seed, on nothing else."""

import json
from typing import Any

import datasets

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


def is_held_out(row: dict[str, Any], fraction: float, seed: int) -> bool:
    """Whether a row belongs to the held-out side.

    Args:
        row: a row in one of the normal forms of `tempspec.data.sources`.
        fraction: the share of distinct contents that is held out, 0 to 1.
        seed: another seed holds out other rows.
    """
    return unit_interval(identity(row), seed) < fraction


def hold_out(dataset: datasets.Dataset, fraction: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split into (kept, held out), both in the order of the dataset; a side may be empty."""
    held = [is_held_out(row, fraction, seed) for row in dataset]
    kept, out = ([index for index, flag in enumerate(held) if flag == side] for side in (False, True))
    return dataset.select(kept), dataset.select(out)
