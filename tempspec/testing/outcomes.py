"""A verifier as a probabilistic program, run under every outcome of its noise (floor 3).

All randomness of a verifier passes through `Noise.coins` and `Noise.draw`. `outcomes` replays the verifier, once more
for each of its calls of the noise: whatever can come of a call in a row becomes a row of its own in the next replay.
What cannot come is left out.

Axes: B rows, K drafted, V vocabulary, N tokens or coins of a call, O its outcomes, C calls of the noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core.noise import Stream
from tempspec.interfaces import Draft, Noise, Verdict, Verifier
from tempspec.testing.errors import ConformanceError
from tempspec.testing.laws import all_chains

__all__ = ["Outcome", "outcomes"]

_NOT_DRAWN_FROM = frozenset({Stream.DRAFT, Stream.SHARED, Stream.ACCEPT})
_MOST_ROWS = 8192
"""Rows of one replay: more take memory, and save nothing."""


@dataclass(frozen=True)
class Outcome:
    """Outcomes of the noise, all of them possible, each in one row of the batch that is verified.

    Attributes:
        row_B: that row.
        weight_B: the outcome's probability there.
        verdict: what the verifier decided under it.
    """

    row_B: Tensor
    weight_B: Tensor
    verdict: Verdict


def outcomes(verifier: Verifier, logp_BKV: Tensor, draft: Draft, where: str = "a batch") -> Iterator[Outcome]:
    """Every outcome of one round that is possible, some at a time; the weights of each row add up to 1.

    Args:
        verifier: must take its randomness from `coins` and `draw` alone, and judge each row by itself.
        logp_BKV: as `Verifier.verify` takes it.
        draft: likewise.
        where: names the setting in errors.
    """
    undecided = [(row_B, row_B.new_zeros(len(row_B), 0)) for row_B in torch.arange(len(logp_BKV)).split(_MOST_ROWS)]
    while undecided:
        row_B, choice_BC = undecided.pop()
        noise = _ForcedNoise(choice_BC, row_B, where)
        verdict = verifier.verify(logp_BKV[row_B], draft.of_rows(row_B), noise)
        if noise.chance_BO is None:
            yield Outcome(row_B, noise.weight_B, verdict)
            continue
        for found_M2 in noise.chance_BO.nonzero().split(_MOST_ROWS):
            at_M, choice_M = found_M2.T
            undecided.append((row_B[at_M], torch.cat([choice_BC[at_M], choice_M[:, None]], 1)))


class _ForcedNoise(Noise):
    """Noise whose outcomes are dictated in each row; calls after the dictated ones take their outcome 0.

    Args:
        choice_BC: the outcomes of the first C calls, int64.
        row_B: the rows' numbers, for errors.
        where: names the setting in errors.

    Attributes:
        chance_BO: of the first call that is not dictated, the probability of each outcome after those that are; None
            until there is such a call.
    """

    def __init__(self, choice_BC: Tensor, row_B: Tensor, where: str) -> None:
        self.chance_BO: Tensor | None = None
        self._choices = iter(choice_BC.unbind(1))
        self._drawn_B = torch.ones(len(row_B), dtype=torch.float64)
        self._low_BK = torch.zeros(len(row_B), 0, dtype=torch.float64)
        self._high_BK = self._low_BK
        self._row_B = row_B
        self._where = where
        self._used: set[Stream] = set()

    @property
    def weight_B(self) -> Tensor:
        """The probability of all outcomes so far: of what was drawn, and of every decision's u being where it must."""
        return self._drawn_B * (self._high_BK - self._low_BK).prod(-1)

    def coins(self, probability_BK: Tensor) -> Tensor:
        """One of the 2^K patterns.

        Each decision's u is known to be in an interval, [0, 1) at first; deciding cuts it at h and keeps one side.
        """
        self._require(~probability_BK.isnan().any(-1), "coins have probabilities", "NaN")
        tossed = probability_BK.shape[1]
        more = max(0, tossed - self._low_BK.shape[1])
        self._low_BK = torch.nn.functional.pad(self._low_BK, (0, more))
        self._high_BK = torch.nn.functional.pad(self._high_BK, (0, more), value=1.0)
        low_BK, high_BK = self._low_BK[:, :tossed], self._high_BK[:, :tossed]
        cut_BK = probability_BK.double().nan_to_num().clamp(low_BK, high_BK)

        def chance_BO() -> Tensor:
            others_B = self._drawn_B * (self._high_BK - self._low_BK)[:, tossed:].prod(-1)
            return others_B[:, None] * _joint(torch.stack([high_BK - cut_BK, cut_BK - low_BK], -1))

        won_BK = all_chains(2, tossed).bool()[self._choose(chance_BO)]
        self._low_BK = torch.cat([torch.where(won_BK, low_BK, cut_BK), self._low_BK[:, tossed:]], 1)
        self._high_BK = torch.cat([torch.where(won_BK, cut_BK, high_BK), self._high_BK[:, tossed:]], 1)
        return won_BK

    def draw(self, weight: Tensor, stream: Stream = Stream.RESIDUAL) -> Tensor:
        """One of the V (or V^N) outcomes."""
        self._use(stream)
        weight_BNV = weight.double().reshape(len(weight), -1, weight.shape[-1])
        fine_BN = (weight_BNV.isfinite() & (weight_BNV >= 0)).all(-1) & (weight_BNV.sum(-1) > 0)
        self._require(fine_BN.all(-1), "draws have finite non-negative weights, not all zero", "such weights")
        share_BNV = torch.where(fine_BN[..., None], weight_BNV / weight_BNV.sum(-1, keepdim=True), 0.0)
        choice_B = self._choose(lambda: self.weight_B[:, None] * _joint(share_BNV))
        token_BN = all_chains(*reversed(share_BNV.shape[1:]))[choice_B]
        self._drawn_B = self._drawn_B * share_BNV.gather(-1, token_BN[..., None]).squeeze(-1).prod(-1)
        return token_BN.reshape(weight.shape[:-1])

    def shared_gumbel(self, count: int, vocabulary: int) -> Tensor:
        """Refused: continuous, and meant for verifiers that say so."""
        law = "only a verifier with shared_noise = True asks for shared noise"
        raise ConformanceError(law, self._where, "shared_gumbel was called")

    def _choose(self, chance_BO: Callable[[], Tensor]) -> Tensor:
        """The dictated outcome of this call, int64 `[B]`, or else 0; of the first that is not, the chances are kept."""
        choice_B = next(self._choices, None)
        if choice_B is not None:
            return choice_B
        if self.chance_BO is None:
            self.chance_BO = chance_BO()
        return torch.zeros_like(self._row_B)

    def _use(self, stream: Stream) -> None:
        """Refuse noise that the round has used already, here or for its drafts."""
        if stream in self._used or stream in _NOT_DRAWN_FROM:
            law = "a verifier draws once from a stream, and from none of the drafter's or the accept decisions'"
            raise ConformanceError(law, self._where, f"{stream.name} noise was used again")
        self._used.add(stream)

    def _require(self, fine_B: Tensor, law: str, found: str) -> None:
        """Refuse broken arguments in any row that can come this far."""
        broken_B = ~fine_B & (self.weight_B > 0)
        if broken_B.any():
            row = int(self._row_B[broken_B.nonzero()[0]])
            raise ConformanceError(law, f"{self._where}, row {row}", f"{found} were given")


def _joint(chance_BNO: Tensor) -> Tensor:
    """The probabilities of all sequences of N independent outcomes, in the order of `all_chains`, `[B, O^N]`.

    >>> _joint(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])).tolist()
    [[0.125, 0.125, 0.375, 0.375]]
    """
    joint_BO = chance_BNO.new_ones(len(chance_BNO), 1)
    for one_BO in chance_BNO.unbind(1):
        joint_BO = (joint_BO[..., None] * one_BO[:, None]).flatten(1)
    return joint_BO
