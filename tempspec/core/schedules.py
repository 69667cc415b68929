"""Schedules: pure functions from a step count to a value (floor 1).

A count beyond the last step keeps the end value. Counts are optimiser steps, from 0; `steps` is the count at which the
end is reached.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["cosine", "exponential", "linear", "piecewise"]


def linear(count: int, *, start: float, end: float, steps: int) -> float:
    """A straight line from `start` to `end`.

    >>> [linear(count, start=2.0, end=1.0, steps=4) for count in (0, 1, 4, 9)]
    [2.0, 1.75, 1.0, 1.0]
    """
    return start + (end - start) * _progress(count, steps)


def cosine(count: int, *, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` to `end`, flat at both ends. Loshchilov and Hutter 2017 (SGDR, arXiv 1608.03983).

    >>> [round(cosine(count, start=2.0, end=1.0, steps=4), 4) for count in (0, 1, 2, 4, 9)]
    [2.0, 1.8536, 1.5, 1.0, 1.0]
    """
    return end + (start - end) * (1 + math.cos(math.pi * _progress(count, steps))) / 2


def exponential(count: int, *, start: float, end: float, steps: int) -> float:
    """A geometric path from `start` to `end`, both positive: each step multiplies by the same factor.

    >>> [round(exponential(count, start=4.0, end=1.0, steps=2), 4) for count in (0, 1, 2, 9)]
    [4.0, 2.0, 1.0, 1.0]
    """
    return start * (end / start) ** _progress(count, steps)


def piecewise(count: int, *, boundaries: Sequence[int], values: Sequence[float]) -> float:
    """Constant pieces: `values[i]` from `boundaries[i - 1]` on, up to the next boundary.

    >>> [piecewise(count, boundaries=[10, 20], values=[3.0, 2.0, 1.0]) for count in (0, 9, 10, 20, 99)]
    [3.0, 3.0, 2.0, 1.0, 1.0]
    """
    return values[bisect_right(boundaries, count)]


def _progress(count: int, steps: int) -> float:
    """The share of the way that is done, 0 to 1."""
    return min(count / steps, 1.0)
