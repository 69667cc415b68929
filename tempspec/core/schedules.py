"""Schedules: pure functions from a step count, or from what is known of a token, to a value (floor 1).

A count beyond the last step keeps the end value. Counts are optimiser steps, from 0; `steps` is the count at which the
end is reached.

Axes: any shape; N tokens.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "by_difficulty",
    "by_entropy",
    "by_peaks",
    "cosine",
    "exponential",
    "linear",
    "piecewise",
    "reversed_gradient",
]


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


def by_difficulty(difficulty: Tensor, median: Tensor | float, *, base: float, strength: float) -> Tensor:
    """Cold on hard tokens, hot on easy ones: base exp(-strength tanh(log(s / median))); a negative strength turns it.

    Xie et al. 2025 (AdaKD's inverse difficulty temperature scaling, arXiv 2510.11615).

    Args:
        difficulty: s, non-negative, any shape; 0 is the easiest there is.
        median: of s over the batch.
        base: the temperature at the median.
        strength: c, the paper takes 0.3 to 0.6; temperatures stay within base exp(+-c).

    >>> by_difficulty(torch.tensor([0.0, 1.0, 3.0]), 1.0, base=1.0, strength=0.5)
    tensor([1.6487, 1.0000, 0.6703])
    """
    smallest = torch.finfo(difficulty.dtype).tiny
    ratio = difficulty.clamp(min=smallest) / torch.as_tensor(median, dtype=difficulty.dtype).clamp(min=smallest)
    return base * torch.exp(-strength * ratio.log().tanh())


def by_entropy(entropy: Tensor, *, low: float, high: float, half: float) -> Tensor:
    """From `low` where the target is certain towards `high` where it is not: low + (high - low) H / (H + half).

    Args:
        entropy: H in nats, non-negative, any shape.
        low: the temperature at H = 0; above `high` the temperature falls with the entropy.
        high: the limit for a large H.
        half: the entropy half-way between, above 0.

    >>> by_entropy(torch.tensor([0.0, 1.0, 3.0]), low=0.5, high=1.5, half=1.0)
    tensor([0.5000, 1.0000, 1.2500])
    """
    return low + (high - low) * entropy / (entropy + half)


def by_peaks(peak_p: Tensor, peak_q: Tensor, *, base: float) -> tuple[Tensor, Tensor]:
    """Target's and draft's temperatures in the ratio of their largest logits, the mean of both at `base`.

    2 base z / (z_p + z_q) each: the sharper model gets the higher temperature. With logits that sum to 0 in mind, as
    the rule depends on their shift. The ratio is kept within 1/9 to 9. Wei and Bai 2024 (DTKD, arXiv 2404.12711).

    Args:
        peak_p: the target's largest logit, any shape.
        peak_q: the draft's.
        base: the mean temperature.

    >>> by_peaks(torch.tensor([3.0]), torch.tensor([1.0]), base=1.0)
    (tensor([1.5000]), tensor([0.5000]))
    """
    peak_p, peak_q = (peak.clamp(min=torch.finfo(peak.dtype).tiny) for peak in (peak_p, peak_q))
    target = (2 * peak_p / (peak_p + peak_q)).clamp(0.2, 1.8)
    return base * target, base * (2 - target)


def reversed_gradient(value: Tensor, weight: float) -> Tensor:
    """The same value, its gradient multiplied by -weight: what follows descends, `value` climbs.

    Ganin and Lempitsky 2015 (arXiv 1409.7495).

    >>> x = torch.tensor(2.0, requires_grad=True)
    >>> y = reversed_gradient(x, 0.5)
    >>> (3 * y).backward()
    >>> y.item(), x.grad
    (2.0, tensor(-1.5000))
    """
    return value.detach() - weight * (value - value.detach())


def _progress(count: int, steps: int) -> float:
    """The share of the way that is done, 0 to 1."""
    return min(count / steps, 1.0)
