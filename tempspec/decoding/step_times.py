"""How long a forward pass takes (floor 4). Knows nothing of rounds or requests.

Axes: R rows, T tokens before the pass.
"""

from statistics import median

import torch

from tempspec.models.ragged import RaggedModel

__all__ = ["pass_seconds"]

PASSES = 5
"""Passes whose median is the answer."""


def pass_seconds(model: RaggedModel, rows: int, text: int, width: int) -> float:
    """Seconds of a pass that feeds `width` new tokens to each of the first rows; one more pass warms up.

    Args:
        model: its caches are overwritten.
        rows: how many rows, at most the model's slots.
        text: tokens of each row before the pass, at least 1.
        width: new tokens a row.
    """
    token_RT = torch.zeros(rows, text, dtype=torch.int64, device=model.device)
    start_R = token_RT[:, 0]
    model.fill(token_RT, start_R, longest=0, rows=torch.arange(rows, device=model.device))
    times = []
    for _ in range(1 + PASSES):
        model.stopwatch.take()
        model.forward(token_RT.new_zeros(rows, width), start_R + text, longest=text)
        times.append(model.stopwatch.take())
    return median(times[1:])
