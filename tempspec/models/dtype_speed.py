"""How much longer a model's own dtype takes than float32 on the CPU, measured (floor 3).

What a CPU can do with half precision is no matter of its instructions alone: small matrices are slow on some that have
them.
"""

import copy
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.cutting import first_layers

__all__ = ["times_float32"]

ROWS, WIDTH = 8, 5
"""Tokens of a pass: rows decoded together, and places that a round verifies."""
MOST_BYTES = 2**30
"""Of the copy in float32 that is measured; a larger one is not made."""


def times_float32(
    model: PreTrainedModel, seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter
) -> float | None:
    """The time of a pass over a model's first layer and head in its own dtype, over that in float32.

    Args:
        model: on the CPU.
        seconds: spent on each of the two; at least three passes each.
        clock: seconds now.

    Returns:
        The ratio; None where the model cannot be cut, or the copy would be large.
    """
    try:
        own = first_layers(model, 1, share=True)
    except UserError:
        return None
    if 4 * sum(weight.numel() for weight in own.parameters()) > MOST_BYTES:
        return None
    whole = copy.deepcopy(own).float()
    return _pass(own, seconds, clock) / _pass(whole, seconds, clock)


@torch.inference_mode()
def _pass(model: PreTrainedModel, seconds: float, clock: Callable[[], float]) -> float:
    """The median time of a pass, a first one left out."""
    token_RN = torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    model(input_ids=token_RN, use_cache=False)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        began = clock()
        model(input_ids=token_RN, use_cache=False)
        taken.append(clock() - began)
    return median(taken)
