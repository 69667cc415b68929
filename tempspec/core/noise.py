"""Counter-based random numbers: noise as a pure function of a key, never of the batch or of call order (floor 1).

A decoding request keeps its seed; every uniform that it consumes is a hash of (seed, round, offset in the round,
stream). The same request therefore gets the same noise alone, in any batch, on any rank and after any resume, while two
different keys give independent noise.
"""

from enum import IntEnum

import torch
from torch import Tensor

# Axes: B batch, any further axes as the caller likes.


class Stream(IntEnum):
    """Independent noise streams of one round. `SHARED` alone is keyed by absolute position (Gumbel coupling)."""

    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    TARGET = 4
    SHARED = 5
    TOKEN = 6
    BOOTSTRAP = 7


def _signed(value: int) -> int:
    """Two's-complement reading of a 64-bit constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


# splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of int64 that turns counters into noise. Any shape, int64."""
    value = (value ^ _shift_right(value, 30)) * _MIX1
    value = (value ^ _shift_right(value, 27)) * _MIX2
    return value ^ _shift_right(value, 31)


def fold(*parts: Tensor | int) -> Tensor:
    """Hash a key of several integers to one int64; parts broadcast against each other.

    Order matters: `fold(a, b)` and `fold(b, a)` are unrelated.
    """
    return extend(torch.zeros((), dtype=torch.int64), *parts)


def extend(key: Tensor, *parts: Tensor | int) -> Tensor:
    """The hash of a longer key, from that of its beginning.

    >>> seed = torch.tensor([1, 2])
    >>> torch.equal(extend(fold(seed), 3, 4), fold(seed, 3, 4))
    True
    """
    for part in parts:
        key = mix(key + part + _GOLDEN)
    return key


def uniform(*parts: Tensor | int) -> Tensor:
    """Uniform float64 in [0, 1) with 53 random bits, one per broadcast key.

    >>> a = uniform(torch.tensor([1, 2]), 0, 0)
    >>> bool((a == uniform(torch.tensor([1, 2]), 0, 0)).all()), bool((0 <= a).all() and (a < 1).all())
    (True, True)
    """
    return _shift_right(fold(*parts), 11).double() * 2.0**-53


def open_uniform(hashed: Tensor) -> Tensor:
    """Uniform float64 strictly between 0 and 1 from the upper 52 bits of a hash: its logarithm is finite, and not 0.

    >>> u = open_uniform(torch.tensor([0, -1]))
    >>> bool((u > 0).all() and (u < 1).all())
    True
    """
    return (_shift_right(hashed, 12).double() + 0.5) * 2.0**-52


def gumbel(*parts: Tensor | int) -> Tensor:
    """Standard Gumbel float64, `-log(-log(u))`, one per broadcast key; finite always."""
    return -torch.log(-torch.log(open_uniform(fold(*parts))))
