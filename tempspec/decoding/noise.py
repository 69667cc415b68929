"""The engine's noise: a function of (request seed, stream, round, offset), never of the batch (floor 4).

Block and tree rules reject depending on later tokens, so noise that came back at the same absolute position in the next
round would bias them: streams are keyed by the round. Gumbel coupling alone is keyed by position, by design.

Axes: B rows, K drafted, V vocabulary, R rounds ahead, S streams, N offsets of a round.
"""

import torch
from torch import Tensor

from tempspec.core.gumbel import coupled_argmax, shared_gumbel
from tempspec.core.noise import Stream, fold, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.interfaces import Noise

ROUNDS_AHEAD = 16
"""Rounds that one hash covers: a hash is some forty small operations, whatever its size."""

STREAMS_AHEAD = (Stream.DRAFT, Stream.ACCEPT, Stream.RESIDUAL, Stream.TARGET)


class RoundNoise(Noise):
    """The randomness of one round.

    Args:
        seed_B: the requests' seeds, int64.
        round_B: the rounds that each row has had.
        length_B: tokens so far; keys the shared noise.
        ahead_BSN: this round's uniforms of `STREAMS_AHEAD`, if they are hashed already; they are the same.
    """

    def __init__(self, seed_B: Tensor, round_B: Tensor, length_B: Tensor, ahead_BSN: Tensor | None = None) -> None:
        self._seed_B = seed_B
        self._round_B = round_B
        self._length_B = length_B
        self._ahead_BSN = ahead_BSN

    def _uniform(self, stream: Stream, count: int, first: int = 0) -> Tensor:
        ahead_BSN = self._ahead_BSN
        if ahead_BSN is not None and stream in STREAMS_AHEAD and first + count <= ahead_BSN.shape[-1]:
            return ahead_BSN[:, STREAMS_AHEAD.index(stream), first : first + count]
        offset_K = torch.arange(first, first + count, device=self._seed_B.device)
        return uniform(self._seed_B[:, None], int(stream), self._round_B[:, None], offset_K)

    def coins(self, probability_BK: Tensor) -> Tensor:
        """Accept decisions, `[B, K]`."""
        return self._uniform(Stream.ACCEPT, probability_BK.shape[1]) < probability_BK

    def draw(self, weight: Tensor, stream: Stream = Stream.RESIDUAL) -> Tensor:
        """One token for each row of weights, `[B]` or `[B, N]`."""
        if weight.ndim == 2:
            return inverse_cdf(weight, self._uniform(stream, 1)[:, 0])
        return inverse_cdf(weight, self._uniform(stream, weight.shape[1]))

    def draft(self, weight_BV: Tensor, offset: int) -> Tensor:
        """The drafted token at an offset of the round, `[B]`."""
        return inverse_cdf(weight_BV, self._uniform(Stream.DRAFT, 1, offset)[:, 0])

    def nodes(self, weight_BMV: Tensor, node_M: Tensor) -> Tensor:
        """The drafted tokens of a tree's nodes, `[B, M]`; a node's number is its offset of the round."""
        if self._ahead_BSN is not None:  # it holds an offset for every node that a drafter may have
            ahead_BN = self._ahead_BSN[:, STREAMS_AHEAD.index(Stream.DRAFT)]
            return inverse_cdf(weight_BMV, ahead_BN.index_select(1, node_M))
        seed_B1, round_B1 = self._seed_B[:, None], self._round_B[:, None]
        return inverse_cdf(weight_BMV, uniform(seed_B1, int(Stream.DRAFT), round_B1, node_M))

    def shared_gumbel(self, count: int, vocabulary: int) -> Tensor:
        """Gumbel noise of the next `count` positions, `[B, count, V]`."""
        return shared_gumbel(self._shared_key(0, count), vocabulary)

    def coupled(self, logp_BNV: Tensor, first: int = 0) -> Tensor:
        """The tokens that the shared noise picks, `[B, N]`."""
        return coupled_argmax(logp_BNV, self._shared_key(first, logp_BNV.shape[1]))

    def _shared_key(self, first: int, count: int) -> Tensor:
        """The shared noise's keys at positions of the text, `[B, count]`."""
        offset_N = torch.arange(first, first + count, device=self._seed_B.device)
        return fold(self._seed_B[:, None], int(Stream.SHARED), self._length_B[:, None] + offset_N)


class NoiseAhead:
    """The noise of the next `ROUNDS_AHEAD` rounds of a batch whose rows stay: hashed at once, handed out by round.

    Args:
        seed_B: the requests' seeds, int64.
        round_B: the rounds that each row has had.
        offsets: N, the most uniforms that a row takes from a stream in one round.
    """

    def __init__(self, seed_B: Tensor, round_B: Tensor, offsets: int) -> None:
        device = seed_B.device
        self._seed_B = seed_B
        self._round_RB = round_B + torch.arange(ROUNDS_AHEAD, device=device)[:, None]
        stream_S1 = torch.tensor(STREAMS_AHEAD, dtype=torch.int64, device=device)[:, None]
        round_RB11 = self._round_RB[:, :, None, None]
        offset_N = torch.arange(offsets, device=device)
        self._uniform_RBSN = uniform(seed_B[:, None, None], stream_S1, round_RB11, offset_N)
        self._used = 0

    @property
    def exhausted(self) -> bool:
        """Whether every round has been handed out."""
        return self._used == ROUNDS_AHEAD

    def next(self, length_B: Tensor) -> RoundNoise:
        """The next round's noise; `length_B` as in `RoundNoise`."""
        at = self._used
        self._used += 1
        return RoundNoise(self._seed_B, self._round_RB[at], length_B, self._uniform_RBSN[at])
