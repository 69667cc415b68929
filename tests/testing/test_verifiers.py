import math

import pytest
import torch

from tempspec.core import tree_verification, trees
from tempspec.core import verification as core
from tempspec.core.noise import Stream, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.interfaces import Draft, Verdict, Verifier
from tempspec.plugins.lossy_verifiers import Typical
from tempspec.plugins.tree_verifiers import RecursiveRejection
from tempspec.plugins.verifiers import GreedyMatch, GumbelCoupling, TokenwiseRejection
from tempspec.testing import ConformanceError, check_verifier, law_error
from tempspec.testing.enumeration import all_rounds, emitted_law
from tempspec.testing.laws import LawPair, context_free, law_cases
from tempspec.testing.sampling import SampledNoise, chi_square, sample_rounds, sampled_law
from tests.controls import (
    BlockFirstFailure,
    BlockPlainResidual,
    MatchPlusResidual,
    ResidualFromTarget,
    SharedNoiseResidual,
    Wrong,
    WrongTemperature,
    block_terms,
    ratio_coins,
)

P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
Q = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64)


class OneUniform(Wrong):
    """Draws the residual with the very uniform whose coin failed, read past the noise's interface."""

    def verify(self, logp_BKV, draft, noise):
        accepted_B = ratio_coins(logp_BKV, draft, noise)
        uniform_BK = uniform(noise.key_B[:, None], int(Stream.ACCEPT), torch.arange(draft.token_BK.shape[1] + 1))
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, inverse_cdf(weight_BV, uniform_BK.gather(1, accepted_B[:, None]).squeeze(1)))


class OneStream(Wrong):
    """Draws the residual from the coins' stream."""

    def verify(self, logp_BKV, draft, noise):
        accepted_B = ratio_coins(logp_BKV, draft, noise)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.ACCEPT))


class CoinsTakenForFresh(Wrong):
    """Tosses with P, then with h / P, as if the second coins were independent of the first."""

    def verify(self, logp_BKV, draft, noise):
        survival_BK, h_BK = block_terms(logp_BKV, draft)
        bound_BK = survival_BK[:, 1:]
        success_BK = noise.coins(bound_BK) & noise.coins(torch.where(bound_BK > 0, h_BK / bound_BK, 0.0))
        accepted_B = core.last_success(success_BK, draft.length_B)
        survival_B = survival_BK.gather(1, accepted_B[:, None]).squeeze(1)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B, survival_B)
        return Verdict(accepted_B, noise.draw(weight_BV))


class ForgetsElderSiblings(RecursiveRejection):
    """Right on chains; in a tree it tests every child against p, not against what its elder siblings left of it."""

    def verify(self, logp_BKV, draft, noise):
        parent_BK, row_B1 = draft.tree_BK, torch.arange(len(draft.token_BK))[:, None]
        own_BK = logp_BKV[row_B1, parent_BK + 1, draft.token_BK]
        chance_BK = core.acceptance_probability(own_BK, core.of_token(draft.logq_BKV, draft.token_BK))
        accept_BK = noise.coins(chance_BK * core.real(draft.token_BK, draft.length_B))
        node_B = trees.walk(accept_BK, parent_BK)
        parts = (logp_BKV, draft.logq_BKV)
        coins = tree_verification.tree_coins(*parts, draft.token_BK, parent_BK, draft.length_B, joint=False)
        weight_BV = tree_verification.tree_weight(*parts, node_B, coins)
        return Verdict(trees.path(node_B, parent_BK).sum(-1), noise.draw(weight_BV), node_B)


class UndeclaredSharedNoise(SharedNoiseResidual):
    shared_noise = False


class OwnRandomness(Wrong):
    def verify(self, logp_BKV, draft, noise):
        logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
        accept_BK = torch.rand(logp_BK.shape) < core.acceptance_probability(logp_BK, logq_BK)
        accepted_B = core.first_rejection(accept_BK, draft.length_B)
        return Verdict(accepted_B, noise.draw(core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)))


class IgnoresLength(Wrong):
    """Tests what lies behind a row's length as if it were drafted."""

    def verify(self, logp_BKV, draft, noise):
        all_B = torch.full_like(draft.length_B, draft.token_BK.shape[1])
        return TokenwiseRejection().verify(logp_BKV, Draft(draft.token_BK, all_B, draft.logq_BKV), noise)


class CountsFromOne(TokenwiseRejection):
    def expected_acceptance(self, logp_BKV, draft):
        return super().expected_acceptance(logp_BKV, draft).roll(1, -1)


class WritesToTheDraft(TokenwiseRejection):
    def verify(self, logp_BKV, draft, noise):
        verdict = super().verify(logp_BKV, draft, noise)
        draft.logq_BKV.sub_(1.0)
        return verdict


class MixesRows(TokenwiseRejection):
    def verify(self, logp_BKV, draft, noise):
        verdict = super().verify(logp_BKV, draft, noise)
        return Verdict(torch.minimum(verdict.accepted_B, verdict.accepted_B.roll(1)), verdict.next_token_B)


class DividesByZero(Wrong):
    """The plain quotient of the textbook, with its 0/0."""

    def verify(self, logp_BKV, draft, noise):
        p_BK = core.of_token(logp_BKV, draft.token_BK).exp()
        q_BK = core.of_token(draft.logq_BKV, draft.token_BK).exp()
        accepted_B = core.first_rejection(noise.coins((p_BK / q_BK).clamp(max=1.0)), draft.length_B)
        q_BKV = torch.nn.functional.pad(draft.logq_BKV, (0, 0, 0, 1), value=-torch.inf).exp()
        q_BV = core.at_position(q_BKV, accepted_B).masked_fill((accepted_B == draft.length_B)[:, None], 0.0)
        weight_BV = (core.at_position(logp_BKV, accepted_B).exp() - q_BV).clamp(min=0.0)
        return Verdict(accepted_B, noise.draw(weight_BV / weight_BV.sum(-1, keepdim=True)))


# The figures are those of the total variation on case A, at the draft length that the figure belongs to.
@pytest.mark.parametrize(
    ("verifier", "drafted", "total_variation"),
    [
        (ResidualFromTarget(), 1, 0.125),
        (MatchPlusResidual(), 1, 0.247),
        (BlockFirstFailure(), 2, 0.258),
        (BlockPlainResidual(), 2, 0.006),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Verifier) else None,
)
def test_negative_controls_are_off_by_what_theory_says(verifier, drafted, total_variation):
    error = law_error(verifier, context_free(P, Q, drafted))
    assert error.total_variation == pytest.approx(total_variation, abs=5e-4)


def test_wrong_draft_temperature_is_off_by_what_theory_says():
    error = law_error(WrongTemperature(), context_free(P, Q**2 / (Q**2).sum(), 1))
    assert error.total_variation == pytest.approx(0.083, abs=5e-4)


@pytest.mark.parametrize(
    ("verifier", "total_variation"),
    [(OneUniform(), 0.051), (SharedNoiseResidual(), 0.015), (TokenwiseRejection(), 0.0), (GumbelCoupling(), 0.0)],
    ids=lambda value: type(value).__name__ if isinstance(value, Verifier) else None,
)
def test_noise_reuse_is_off_by_what_theory_says(verifier, total_variation):
    pair, rows = context_free(P, Q, 1), 400_000
    count = sampled_law(sample_rounds(verifier, pair, rows))
    measured = float((count / rows - pair.target_law()).abs().sum()) / 2
    # Chance alone gives about sqrt(cells / (2 pi rows)) = .0025.
    assert measured == pytest.approx(total_variation, abs=0.0035)
    assert (chi_square(count, pair.target_law()).p_value < 1e-4) == (total_variation > 0)


@pytest.mark.parametrize(
    ("verifier", "law"),
    [
        (ResidualFromTarget(), "have the target's law"),
        (MatchPlusResidual(), "have the target's law"),
        (BlockFirstFailure(), "have the target's law"),
        (BlockPlainResidual(), "have the target's law"),
        (WrongTemperature(), "have the target's law"),
        (SharedNoiseResidual(), "have the target's law"),
        (CoinsTakenForFresh(), "have the target's law"),
        (ForgetsElderSiblings(), "have the target's law.*nodes of"),
        (OneStream(), "draws once from a stream"),
        (UndeclaredSharedNoise(), "asks for shared noise"),
        (OwnRandomness(), "all randomness comes from the noise"),
        (IgnoresLength(), "accepted_B is in its range"),
        (CountsFromOne(), "expected_acceptance is P"),
        (WritesToTheDraft(), "writes nothing to its inputs"),
        (MixesRows(), "does not depend on the batch"),
        (DividesByZero(), "were given"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Verifier) else None,
)
def test_the_kit_refuses(verifier, law):
    with pytest.raises(ConformanceError, match=law):
        check_verifier(verifier)


def test_a_lossy_rule_that_claims_the_law_is_refused():
    claims = type("ClaimsLossless", (Typical,), {"lossless": True})
    with pytest.raises(ConformanceError, match="total variation"):
        check_verifier(claims())


def test_greedy_matching_above_temperature_zero_is_refused():
    claims = type("AnyTemperature", (GreedyMatch,), {"greedy_only": False})
    with pytest.raises(ConformanceError, match="have the target's law"):
        check_verifier(claims())


def test_enumeration_agrees_with_sampling():
    pair = law_cases(3, 2)["unlike laws"]
    exact = emitted_law(ResidualFromTarget(), all_rounds(pair))[2]
    rounds = sample_rounds(ResidualFromTarget(), pair, 100_000, seed=3)
    assert chi_square(sampled_law(rounds), exact).p_value > 1e-3


def test_rounds_of_every_length_have_the_drafts_law():
    rounds = all_rounds(law_cases(3, 2)["laws with zeros"])
    assert rounds.groups == ("0 drafted", "1 drafted", "2 drafted", "drafts that stop after token 0")
    weight = torch.zeros(4).double().index_add(0, rounds.group_B, rounds.weight_B)
    torch.testing.assert_close(weight, torch.ones(4).double())
    assert (rounds.weight_B > 0).all()


def test_target_law_is_the_product_of_its_conditionals():
    pair = LawPair((P.log()[None], torch.stack([P.log(), Q.log(), P.log(), Q.log()])), (Q.log()[None],))
    expected = torch.cat([P[0] * P, P[1] * Q, P[2] * P, P[3] * Q])
    torch.testing.assert_close(pair.target_law(), expected)


def test_chi_square_keeps_its_level_and_refuses_the_impossible():
    law = torch.tensor([0.4, 0.3, 0.2999, 0.0001])
    uniforms = uniform(torch.arange(400)[:, None], torch.arange(500))
    counts = inverse_cdf(law.expand(400, 500, 4), uniforms)
    values = torch.tensor([chi_square(row.bincount(minlength=4), law).p_value for row in counts])
    assert values.lt(0.1).double().mean().item() == pytest.approx(0.1, abs=0.05)
    assert chi_square(torch.tensor([5, 1]), torch.tensor([1.0, 0.0])).p_value == 0
    assert math.isinf(chi_square(torch.tensor([5, 1]), torch.tensor([1.0, 0.0])).statistic)


def test_sampled_noise_streams_are_independent():
    noise = SampledNoise(torch.arange(50_000))
    flat = torch.ones(50_000, 2)
    first, second = noise.draw(flat, Stream.RESIDUAL), noise.draw(flat, Stream.TARGET)
    coins = noise.coins(flat[:, :1] / 2).squeeze(1).long()
    for one, other in ((first, second), (first, coins), (second, coins)):
        assert chi_square((2 * one + other).bincount(minlength=4), torch.ones(4)).p_value > 1e-3


def test_a_coin_asked_again_has_the_same_noise():
    noise, chance = SampledNoise(torch.arange(1000)), torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.coins(chance), noise.coins(chance))
    assert not (noise.coins(chance / 2) & ~noise.coins(chance)).any()
