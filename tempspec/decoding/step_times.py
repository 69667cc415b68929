"""How long a forward pass takes, and those of a round. Knows nothing of requests (floor 4).

Axes: R rows, T tokens before the pass.
"""

from collections.abc import Callable
from itertools import pairwise
from statistics import mean, median

import torch

from tempspec.interfaces import Drafter, StepTimes
from tempspec.models.ragged import RaggedModel

__all__ = ["median_of", "pass_seconds", "round_seconds"]

PASSES = 5
"""Passes whose median is the answer."""


def pass_seconds(model: RaggedModel, rows: int, text: int, width: int) -> float:
    """Seconds of a pass that feeds `width` new tokens to each of the first rows; one more pass warms up.

    Args:
        model: its caches are overwritten.
        rows: how many rows, at most the model's slots.
        text: tokens of each row before the pass, at least 1.
        width: new tokens per row.
    """
    token_RT = torch.zeros(rows, text, dtype=torch.int64, device=model.device)
    start_R = token_RT[:, 0]
    model.fill(token_RT, start_R, longest=0, rows=torch.arange(rows, device=model.device))

    def once() -> float:
        model.stopwatch.take()
        model.forward(token_RT.new_zeros(rows, width), start_R + text, longest=text)
        return model.stopwatch.take()

    return median_of(once)


def median_of(once: Callable[[], float]) -> float:
    """The median of what some passes take, after one that warms up.

    Args:
        once: runs a pass, and says how many seconds it took.
    """
    once()
    return median(once() for _ in range(PASSES))


def round_seconds(
    target: RaggedModel,
    draft: Callable[[int, int, int], float] | None,
    drafter: Drafter | None,
    rows: int,
    text: int,
    longest: int,
) -> StepTimes:
    """The forward passes of a round; of a tree, a level is what costs a step of the draft, and all nodes are verified.

    Args:
        target: verifies.
        draft: seconds of a pass of the draft, by rows, text and width as in `pass_seconds`, if one takes part.
        drafter: what says how many nodes a draft of some depth has.
        rows: how many rows, at most the models' slots.
        text: tokens of each row before the passes, at least 1.
        longest: the most tokens, or levels, of a draft.
    """
    nodes = [drafter.most_nodes(count) if drafter else 0 for count in range(longest + 1)]
    verify = tuple(pass_seconds(target, rows, text, 1 + count) for count in nodes)
    if draft is None:
        return StepTimes(0.0, verify)
    levels = [1, *(max(1, after - before) for before, after in pairwise(nodes[:-1]))]  # leaves are not fed
    seconds = {width: draft(rows, text, width) for width in set(levels)}
    return StepTimes(mean(seconds[width] for width in levels), verify)
