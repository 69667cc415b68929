"""How much of what is trained on is padding: conversations of realistic lengths, in the loader's own order, no model.

python benchmarks/realistic_padding.py --quick
"""

from __future__ import annotations

from argparse import ArgumentParser

import numpy as np
from goals import Goal, finish, parse

from tempspec.data.grouping import LengthGroups, Padding
from tempspec.data.loaders import ShardSampler

MEAN, LONGEST = 1600, 4096
"""Tokens of a conversation: exponential, cut."""
WINDOW, MULTIPLE = 256, 64
"""The defaults of `data.group_by_length` and `data.pad_to_multiple`."""


def padding(quick: bool) -> list[Goal]:
    """The padded share of an epoch, grouped by length and not, for two batch sizes and for eight processes.

    Args:
        quick: 20,000 conversations, not 100,000.
    """
    rows = 20_000 if quick else 100_000
    drawn = np.random.default_rng(0).exponential(MEAN, rows)
    lengths = np.clip(drawn, 16, LONGEST).astype(np.int64)
    goals = []
    for batch_size, world in ((8, 1), (16, 1), (8, 8)):
        plain, grouped = (share(lengths, batch_size, world, window) for window in (0, WINDOW))
        name = f"padded share, {rows:,} conversations, {world} x {batch_size} rows"
        print(f"{name}: {plain:.3f} in random batches, {grouped:.3f} grouped by length")
        goals.append(Goal(name, grouped, high=0.10))
    return goals


def share(lengths: np.ndarray, batch_size: int, world: int, window: int) -> float:
    """The padded share of the first epoch."""
    groups = LengthGroups(lengths, batch_size * world, window)
    order = ShardSampler(len(lengths), world=world, shuffle=True, groups=groups).order()
    return Padding(LONGEST, MULTIPLE if window else 1).share(lengths[order], batch_size, world)


if __name__ == "__main__":
    finish(padding(parse(ArgumentParser(description=__doc__)).quick))
