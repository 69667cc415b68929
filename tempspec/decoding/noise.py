"""The engine's noise: a function of (request seed, stream, round, offset), never of the batch (floor 4).

Block and tree rules reject depending on later tokens, so noise that came back at the same absolute position in the next
round would bias them: streams are keyed by the round. Gumbel coupling alone is keyed by position, by design.

Axes: B rows, K drafted, V vocabulary.
"""

import torch
from torch import Tensor

from tempspec.core.noise import Stream, gumbel, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.interfaces import Noise


class RoundNoise(Noise):
    """The randomness of one round.

    Args:
        seed_B: the requests' seeds, int64.
        round_B: the rounds that each row has had.
        length_B: tokens so far; keys the shared noise.
    """

    def __init__(self, seed_B: Tensor, round_B: Tensor, length_B: Tensor) -> None:
        self._seed_B = seed_B
        self._round_B = round_B
        self._length_B = length_B

    def _uniform(self, stream: Stream, count: int, first: int = 0) -> Tensor:
        offset_K = torch.arange(first, first + count, device=self._seed_B.device)
        return uniform(self._seed_B[:, None], int(stream), self._round_B[:, None], offset_K)

    def coins(self, probability_BK: Tensor) -> Tensor:
        """Accept coins, `[B, K]`."""
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
        seed_B1, round_B1 = self._seed_B[:, None], self._round_B[:, None]
        return inverse_cdf(weight_BMV, uniform(seed_B1, int(Stream.DRAFT), round_B1, node_M))

    def shared_gumbel(self, count: int, vocabulary: int) -> Tensor:
        """Gumbel noise of the next `count` positions, `[B, count, V]`."""
        return self._gumbel(torch.arange(count, device=self._seed_B.device), vocabulary)

    def shared_gumbel_at(self, offset: int, vocabulary: int) -> Tensor:
        """Gumbel noise of one position, `[B, V]`."""
        return self._gumbel(torch.tensor([offset], device=self._seed_B.device), vocabulary)[:, 0]

    def _gumbel(self, offset_N: Tensor, vocabulary: int) -> Tensor:
        position_BN1 = (self._length_B[:, None] + offset_N)[:, :, None]
        token_V = torch.arange(vocabulary, device=offset_N.device)
        return gumbel(self._seed_B[:, None, None], int(Stream.SHARED), position_BN1, token_V)
