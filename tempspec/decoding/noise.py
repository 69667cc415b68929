"""The engine's noise: a function of (request seed, stream, round, offset), never of the batch (floor 4).

Block and tree rules reject depending on later tokens, so noise that came back at the same absolute position in the next
round would bias them: streams are keyed by the round. Gumbel coupling alone is keyed by position, by design.

Axes: B rows, K drafted, V vocabulary, R rounds ahead, S streams, N offsets of a round.
"""

import torch
from torch import Tensor

from tempspec.core import hosts
from tempspec.core.gumbel import Race
from tempspec.core.noise import Stream, extend, fold, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.interfaces import Noise

ROUNDS_AHEAD = 16
"""Rounds that one hash covers: a hash is some forty small operations, whatever its size."""

WHOLE_ON_A_CPU, WHOLE_ON_A_GPU = 1 << 16, 1 << 27
"""Shared noise of a round up to so many numbers is made at once: few operations, and on a GPU each is a launch."""

STREAMS_AHEAD = (Stream.DRAFT, Stream.ACCEPT, Stream.RESIDUAL, Stream.TARGET)


class RoundNoise(Noise):
    """The randomness of one round.

    Args:
        seed_B: the requests' seeds, int64.
        round_B: the rounds that each row has had.
        length_B: tokens so far; keys the shared noise.
        ahead_BSN: this round's uniforms of `STREAMS_AHEAD`, if they are hashed already; they are the same.
        shared_B: what the shared noise's keys begin with, likewise.

    Attributes:
        length_B: tokens so far.
    """

    def __init__(
        self,
        seed_B: Tensor,
        round_B: Tensor,
        length_B: Tensor,
        ahead_BSN: Tensor | None = None,
        shared_B: Tensor | None = None,
    ) -> None:
        self._seed_B = seed_B
        self._round_B = round_B
        self.length_B = length_B
        self._ahead_BSN = ahead_BSN
        self._shared_B = shared_B
        self._race: Race | None = None
        self._gumbel_BNV: Tensor | None = None

    @property
    def given(self) -> list[Tensor]:
        """The tensors that it was made of, in the order of the arguments."""
        made_of = self._seed_B, self._round_B, self.length_B, self._ahead_BSN, self._shared_B
        return [value for value in made_of if value is not None]

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
        return self._races(count, vocabulary).part(0, count).gumbel()

    def coupled(self, logp_BNV: Tensor, first: int = 0) -> Tensor:
        """The tokens that the shared noise picks, `[B, N]`."""
        end, vocabulary = first + logp_BNV.shape[1], logp_BNV.shape[-1]
        race, free = self._races(end, vocabulary), hosts.reads_free(logp_BNV)
        if race.later.numel() * vocabulary <= (WHOLE_ON_A_CPU if free else WHOLE_ON_A_GPU):
            if self._gumbel_BNV is None or self._gumbel_BNV.shape[1] < end:
                self._gumbel_BNV = race.gumbel()
            return (logp_BNV + self._gumbel_BNV[:, first:end]).argmax(-1)
        part = race.part(first, end)
        return part.winner(logp_BNV) if free else (logp_BNV + part.gumbel()).argmax(-1)

    def _races(self, count: int, vocabulary: int) -> Race:
        """The shared noise of at least so many positions: of the whole round, where it is known how many that has."""
        if self._race is None or self._race.later.shape[1] < count:
            count = count if self._ahead_BSN is None else max(count, self._ahead_BSN.shape[-1])
            position_BN = self.length_B[:, None] + torch.arange(count, device=self._seed_B.device)
            shared_B = shared_keys(self._seed_B) if self._shared_B is None else self._shared_B
            self._race = Race.of(extend(shared_B[:, None], position_BN), vocabulary)
        return self._race


def shared_keys(seed_B: Tensor) -> Tensor:
    """What the keys of the shared noise begin with, `[B]`; each position of the text is folded in."""
    return fold(seed_B, int(Stream.SHARED))


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
        self._shared_B = shared_keys(seed_B)
        self._used = 0

    @property
    def exhausted(self) -> bool:
        """Whether every round has been handed out."""
        return self._used == ROUNDS_AHEAD

    def next(self, length_B: Tensor) -> RoundNoise:
        """The next round's noise; `length_B` as in `RoundNoise`."""
        at = self._used
        self._used += 1
        return RoundNoise(self._seed_B, self._round_RB[at], length_B, self._uniform_RBSN[at], self._shared_B)
