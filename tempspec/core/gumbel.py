"""Shared Gumbel noise as a race of arrivals: a sample costs what its likely tokens cost (floor 1).

`argmax(logp + G)` with Gumbel noise `G = -log(t)` is the winner of a race in which token x arrives after an exponential
time t of rate 1 over p(x). The times are made from the top down, block by block: the first of a block's S times is
exponential with rate S and belongs to any of its tokens; by the memoryless law the others follow after exponential
times of their own. (The same for Gumbels and truncated Gumbels: Maddison et al. 2014, A* sampling, 1411.0030.) A
block's first time bounds all of them, so that an argmax needs the times of few tokens, and finds what all would give.

Axes: R rows, V vocabulary, M blocks, W blocks of more than one token, S tokens of such a block, C blocks and X tokens
that may win.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tempspec.core.noise import extend, open_uniform

BLOCK = 64
"""Tokens of a block, a power of two; those after the last whole block are blocks of their own. Part of what the noise
is: another number gives other noise."""

_FIRST, _LATER = range(2)


def shared_gumbel(key: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel float64 `[..., V]` for keys int64 `[...]`: independent over keys and tokens, finite always."""
    return Race.of(key, vocabulary).gumbel()


def coupled_argmax(logp: Tensor, key: Tensor) -> Tensor:
    """`(logp + shared_gumbel(key, V)).argmax(-1)` from the noise of the tokens that may win, int64 `[...]`.

    How many those are is read on the host.

    Args:
        logp: log-probabilities, `[..., V]`, of any floating precision; -inf is never chosen.
        key: int64 `[...]`.
    """
    return Race.of(key, logp.shape[-1]).winner(logp)


@dataclass(frozen=True, slots=True)
class Race:
    """The noise of some keys, as far as all draws with it need the same.

    Attributes:
        vocabulary: V.
        first: when the first token of each block arrives, float64 `[..., M]`.
        leader: which one it is, int64 `[..., M]`.
        later: the hash that all other tokens' times begin with, int64 `[...]`.
    """

    vocabulary: int
    first: Tensor
    leader: Tensor
    later: Tensor

    @classmethod
    def of(cls, key: Tensor, vocabulary: int) -> "Race":
        """The noise of keys int64 `[...]`."""
        block_M, size_M, start_M, _ = _blocks(vocabulary, key.device)
        hashed = extend(extend(key, _FIRST)[..., None], block_M)
        first = -open_uniform(hashed).log() / size_M
        # The lowest bits, which the time has not used.
        return cls(vocabulary, first, start_M + (hashed & (size_M - 1)), extend(key, _LATER))

    def part(self, start: int, end: int) -> "Race":
        """The noise of some of the keys, along the second axis."""
        some = (value[:, start:end] for value in (self.first, self.leader, self.later))
        return Race(self.vocabulary, *some)

    def gumbel(self) -> Tensor:
        """All of it, `[..., V]`."""
        token_V = torch.arange(self.vocabulary, device=self.first.device)
        block_V = _blocks(self.vocabulary, self.first.device)[-1]
        first, leader = self.first[..., block_V], self.leader[..., block_V]
        later = _later(first, self.later[..., None], token_V)
        return -torch.where(token_V == leader, first, later).log()

    def winner(self, logp: Tensor) -> Tensor:
        """See `coupled_argmax`."""
        logp_RV, later_R = logp.reshape(-1, self.vocabulary), self.later.reshape(-1)
        first_RM, leader_RM = (value.reshape(len(later_R), -1) for value in (self.first, self.leader))
        top_RM = -first_RM.log()
        best_R, block_R = (logp_RV.gather(1, leader_RM) + top_RM).max(1)
        token_R = leader_RM.gather(1, block_R[:, None])[:, 0]
        whole = self.vocabulary // BLOCK
        logp_RWS = logp_RV[:, : whole * BLOCK].unflatten(1, (whole, BLOCK))
        needed_RW = torch.nextafter((best_R[:, None] - top_RM[:, :whole]).to(logp.dtype), logp.new_tensor(-torch.inf))
        row_C, block_C = (logp_RWS.amax(-1) > needed_RW).nonzero(as_tuple=True)
        of_X, place_X = (logp_RWS[row_C, block_C] > needed_RW[row_C, block_C][:, None]).nonzero(as_tuple=True)
        row_X, block_X = row_C[of_X], block_C[of_X]
        token_X = block_X * BLOCK + place_X
        value_X = logp_RV[row_X, token_X] - _later(first_RM[row_X, block_X], later_R[row_X], token_X).log()
        wins_X = value_X == best_R.scatter_reduce(0, row_X, value_X, "amax")[row_X]
        token_R[row_X[wins_X]] = token_X[wins_X]
        return token_R.view(logp.shape[:-1])


@cache
def _blocks(vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The blocks' numbers, sizes and first tokens, `[M]` each, and the block of each token, `[V]`."""
    whole = vocabulary // BLOCK
    block_M = torch.arange(whole + vocabulary % BLOCK, device=device)
    size_M = torch.where(block_M < whole, BLOCK, 1)
    start_M = torch.where(block_M < whole, block_M * BLOCK, block_M + whole * (BLOCK - 1))
    token_V = torch.arange(vocabulary, device=device)
    block_V = torch.where(token_V < whole * BLOCK, token_V // BLOCK, token_V - whole * (BLOCK - 1))
    return block_M, size_M, start_M, block_V


def _later(first: Tensor, key: Tensor, token: Tensor) -> Tensor:
    """When a token arrives that is not the first of its block; `key` is `Race.later`."""
    return first - open_uniform(extend(key, token)).log()
