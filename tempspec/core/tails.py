"""What a law has below its K most likely tokens, at any temperature, where only these are told (floor 1).

A server tells the log-probabilities of the largest tokens at temperature 1. How much the others have together is then
known exactly at 1. At another temperature it depends on how they share it: it lies between two bounds, and a power law
of the rank that begins at the last token told and has the right mass is taken in between.

Axes: N positions, K told tokens, H temperatures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tempspec.core.sparse import SparseLogits

__all__ = ["bounds", "power_law", "told"]

_LEAST = -30.0
"""In nats: the least log-mass of a tail; what is left of float32 log-probabilities is rounding below about -15."""

_STEEPEST = 200.0
_HALVINGS = 60


def bounds(logp_NK: Tensor, vocabulary: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The least and the most that the log-sum of `p^(1 / T)` over all other tokens can be, `[N]` each.

    No other token is more likely than the last one told, and they share the rest of the mass: all at that token's
    probability, or all alike. Both are met at T = 1.

    Args:
        logp_NK: log-probabilities of the K most likely tokens, falling.
        vocabulary: V, more than K.
        temperature: T > 0.

    >>> logp_NK = torch.tensor([[0.5, 0.25]]).double().log()
    >>> [round(float(bound.exp()), 4) for bound in bounds(logp_NK, 6, 2.0)]
    [0.5, 1.0]
    >>> [round(float(bound.exp()), 4) for bound in bounds(logp_NK, 6, 1.0)]
    [0.25, 0.25]
    """
    cold, others = 1 / temperature, vocabulary - logp_NK.shape[-1]
    logm_N, last_N = _mass(logp_NK, others), logp_NK[:, -1]
    packed_N = logm_N + (cold - 1) * last_N
    spread_N = logm_N * cold + (1 - cold) * torch.full_like(logm_N, others).log()
    return torch.minimum(packed_N, spread_N), torch.maximum(packed_N, spread_N)


def power_law(logp_NK: Tensor, vocabulary: int, temperatures: Sequence[float]) -> Tensor:
    """The log-sum of `p^(1 / T)` over all other tokens, if their probability falls as a power of their rank, `[N, H]`.

    Exact at T = 1 in any case; at other temperatures within `bounds`.

    Args:
        logp_NK: log-probabilities of the K most likely tokens, falling.
        vocabulary: V, more than K.
        temperatures: H temperatures above 0.

    >>> logp_NK = (1 / torch.arange(1, 9).double()).div((1 / torch.arange(1, 1001).double()).sum()).log()[None]
    >>> true = ((1 / torch.arange(9, 1001).double()).pow(0.5)).sum() * logp_NK[0, 0].exp().sqrt()
    >>> round(float(power_law(logp_NK, 1000, [2.0])[0, 0].exp() / true), 2)
    1.0
    """
    told_, others = logp_NK.shape[-1], vocabulary - logp_NK.shape[-1]
    last_N, logm_N = logp_NK[:, -1], _mass(logp_NK, others)
    slope_N = _slope(logm_N - last_N, told_, vocabulary)
    found = []
    for temperature in temperatures:
        sum_N = last_N / temperature + _integral(slope_N / temperature, told_, vocabulary)
        found.append(sum_N.clamp(*bounds(logp_NK, vocabulary, temperature)))
    return torch.stack(found, -1)


def told(token_NK: Tensor, logp_NK: Tensor, vocabulary: int, temperatures: Sequence[float]) -> SparseLogits:
    """A teacher of the tokens told, with a tail at each temperature.

    Args:
        token_NK: the K most likely tokens, int64.
        logp_NK: their log-probabilities at temperature 1.
        vocabulary: V; where all are told, there is no tail.
        temperatures: increasing, above 0.
    """
    if token_NK.shape[-1] >= vocabulary:
        logsum_NH = logp_NK.new_full((len(logp_NK), len(temperatures)), -torch.inf)
    else:
        logsum_NH = power_law(logp_NK.double(), vocabulary, temperatures).to(logp_NK.dtype)
    return SparseLogits(token_NK, logp_NK, logsum_NH, tuple(temperatures))


def _mass(logp_NK: Tensor, others: int) -> Tensor:
    """The log of what is left of 1: at most what so many tokens can have that are no likelier than the last."""
    left_N = torch.log1p(-logp_NK.exp().sum(-1).clamp(max=1 - 1e-13)).clamp(min=_LEAST)
    return torch.minimum(left_N, logp_NK[:, -1] + torch.full_like(left_N, others).log())


def _slope(ratio_N: Tensor, told_: int, vocabulary: int) -> Tensor:
    """The power a with which the integral of `(r / K)^-a` is the exponential of a ratio, by halving."""
    low_N, high_N = torch.zeros_like(ratio_N), torch.full_like(ratio_N, _STEEPEST)
    for _ in range(_HALVINGS):
        middle_N = (low_N + high_N) / 2
        flat_N = _integral(middle_N, told_, vocabulary) > ratio_N
        low_N, high_N = torch.where(flat_N, middle_N, low_N), torch.where(flat_N, high_N, middle_N)
    return (low_N + high_N) / 2


def _integral(slope_N: Tensor, told_: int, vocabulary: int) -> Tensor:
    """The log of the integral of `(r / K)^-a` over the ranks r from K + 1/2 to V + 1/2."""
    first, last = slope_N.new_tensor([(told_ + 0.5) / told_, (vocabulary + 0.5) / told_]).log()
    power_N = 1 - slope_N
    safe_N = torch.where(power_N.abs() < 1e-9, torch.full_like(power_N, 1e-9), power_N)
    width = last - first
    # (e^(s last) - e^(s first)) / s, with the larger exponential taken out
    top_N = torch.where(safe_N > 0, safe_N * last, safe_N * first)
    return top_N + (-torch.expm1(-safe_N.abs() * width)).log() - safe_N.abs().log() + slope_N.new_tensor(told_).log()
