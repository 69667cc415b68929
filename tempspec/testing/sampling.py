"""Where enumeration cannot go: seeded noise, many rounds at once, and the chi-square test that judges them (floor 3).

Axes: B rounds, K drafted, V vocabulary, N draws of a round, C cells of a joint law.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core.noise import Stream, fold, gumbel, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.interfaces import Draft, Noise, Verdict, Verifier
from tempspec.testing.laws import LawPair, prefix_codes

__all__ = ["ChiSquare", "SampledNoise", "SampledRounds", "chi_square", "sample_rounds", "sampled_law"]


class SampledNoise(Noise):
    """Noise of one round as a function of each row's key, with an engine's layout: one uniform per stream and offset.

    Args:
        key_B: int64; rows with equal keys have equal noise, whatever batch they are in.
    """

    def __init__(self, key_B: Tensor) -> None:
        self.key_B = key_B

    def _uniform(self, stream: Stream, count: int) -> Tensor:
        return uniform(self.key_B[:, None], int(stream), torch.arange(count))

    def coins(self, probability_BK: Tensor) -> Tensor:
        """Accept decisions, `[B, K]`."""
        return self._uniform(Stream.ACCEPT, probability_BK.shape[1]) < probability_BK

    def draw(self, weight: Tensor, stream: Stream = Stream.RESIDUAL) -> Tensor:
        """One token for each row of weights, `[B]` or `[B, N]`."""
        count = 1 if weight.ndim == 2 else weight.shape[1]
        return inverse_cdf(weight, self._uniform(stream, count).reshape(weight.shape[:-1]))

    def shared_gumbel(self, count: int, vocabulary: int) -> Tensor:
        """Gumbel noise, `[B, count, V]`, the same at each call."""
        key_B11, position_N1 = self.key_B[:, None, None], torch.arange(count)[:, None]
        return gumbel(key_B11, int(Stream.SHARED), position_N1, torch.arange(vocabulary))


@dataclass(frozen=True)
class SampledRounds:
    """Many independent rounds.

    Attributes:
        pair: the laws.
        draft: the drafts.
        logp_BKV: the target's laws along them.
        verdict: what the verifier decided.
        token_BK: K + 1 tokens of each round: those emitted, then the target's own, `[B, K+1]`.
    """

    pair: LawPair
    draft: Draft
    logp_BKV: Tensor
    verdict: Verdict
    token_BK: Tensor


def sample_rounds(
    verifier: Verifier, pair: LawPair, rows: int, *, seed: int = 0, ragged: bool = False
) -> SampledRounds:
    """Draft, verify and complete: `rows` rounds as one batch, each with noise of its own.

    Args:
        verifier: drafts are sampled with the shared noise if it says so, by inversion otherwise.
        pair: the laws.
        rows: B.
        seed: equal seeds give equal rounds.
        ragged: draft 0, 1, ..., K, 0, ... tokens instead of K in every round.
    """
    noise = SampledNoise(fold(seed, torch.arange(rows)))
    token_BK = _sample_draft(verifier, pair, noise)
    logp_BKV, logq_BKV = pair.rows(token_BK)
    length_B = (
        torch.arange(rows) % (pair.longest + 1) if ragged else torch.full((rows,), pair.longest, dtype=torch.int64)
    )
    draft = Draft(token_BK, length_B, logq_BKV)
    verdict = verifier.verify(logp_BKV, draft, noise)
    return SampledRounds(pair, draft, logp_BKV, verdict, _completed(pair, draft, verdict, noise.key_B))


def _sample_draft(verifier: Verifier, pair: LawPair, noise: SampledNoise) -> Tensor:
    """Drafted chains, `[B, K]`."""
    rows, vocabulary = len(noise.key_B), pair.vocabulary
    gumbel_BKV = noise.shared_gumbel(pair.longest, vocabulary) if verifier.shared_noise else None
    token_BK, code_B = torch.zeros(rows, 0, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    for offset, table in enumerate(pair.logq):
        if gumbel_BKV is None:
            token_B = inverse_cdf(table[code_B].exp(), uniform(noise.key_B, int(Stream.DRAFT), offset))
        else:
            token_B = (table[code_B] + gumbel_BKV[:, offset]).argmax(-1)
        token_BK, code_B = torch.cat([token_BK, token_B[:, None]], 1), code_B * vocabulary + token_B
    return token_BK


def _completed(pair: LawPair, draft: Draft, verdict: Verdict, key_B: Tensor) -> Tensor:
    """The emitted tokens of each round, then target samples (fresh noise) up to K + 1 tokens."""
    token_BK = torch.nn.functional.pad(draft.token_BK, (0, 1))
    token_BK = token_BK.scatter(1, verdict.accepted_B[:, None], verdict.next_token_B[:, None])
    for depth in range(1, pair.longest + 1):
        code_B = prefix_codes(token_BK[:, :depth], pair.vocabulary)[:, -1]
        own_B = inverse_cdf(pair.logp[depth][code_B].exp(), uniform(key_B, int(Stream.TOKEN), depth))
        token_BK[:, depth] = torch.where(depth > verdict.accepted_B, own_B, token_BK[:, depth])
    return token_BK


def sampled_law(rounds: SampledRounds) -> Tensor:
    """How often each chain of K + 1 tokens came out, int64 `[V^(K+1)]`."""
    vocabulary = rounds.pair.vocabulary
    code_B = prefix_codes(rounds.token_BK, vocabulary)[:, -1]
    return code_B.bincount(minlength=vocabulary ** (rounds.pair.longest + 1))


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of counts against a law.

    Attributes:
        statistic: the sum of squared gaps over expectations; infinite if something impossible happened.
        freedom: degrees of freedom.
        p_value: the probability of a statistic at least as large under the law.
    """

    statistic: float
    freedom: int
    p_value: float


def chi_square(count_C: Tensor, law_C: Tensor, least: float = 20.0) -> ChiSquare:
    """Whether counts fit a law; cells that expect less than `least` are merged into one.

    Args:
        count_C: how often each cell came out.
        law_C: the cells' probabilities.
        least: the smallest expectation that the statistic's distribution is trusted with.

    >>> chi_square(torch.tensor([60, 40]), torch.tensor([0.5, 0.5]))
    ChiSquare(statistic=4.0, freedom=1, p_value=0.045500...)
    """
    count_C, expected_C = count_C.double(), law_C.double() / law_C.sum() * count_C.sum()
    if (count_C[expected_C == 0] > 0).any():
        return ChiSquare(float("inf"), 0, 0.0)
    dense_C = expected_C >= least
    count = torch.cat([count_C[dense_C], count_C[~dense_C].sum()[None]])
    expected = torch.cat([expected_C[dense_C], expected_C[~dense_C].sum()[None]])
    count, expected = count[expected > 0], expected[expected > 0]
    statistic, freedom = ((count - expected) ** 2 / expected).sum(), len(count) - 1
    if freedom == 0:
        return ChiSquare(float(statistic), 0, 1.0)
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return ChiSquare(float(statistic), freedom, float(torch.special.gammaincc(half, statistic / 2)))
