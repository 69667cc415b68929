"""Every outcome of a verifier's noise: all that is possible, each once, however many are looked at together."""

import pytest
import torch

from tempspec.interfaces import Verdict
from tempspec.plugins.lossy_verifiers import Typical
from tempspec.plugins.tree_verifiers import Traversal
from tempspec.plugins.verifiers import BlockVerification, SampledMatch, TokenwiseRejection
from tempspec.testing import ConformanceError
from tempspec.testing.enumeration import all_rounds, all_trees, emitted_law
from tempspec.testing.laws import law_cases
from tempspec.testing.outcomes import outcomes
from tests.controls import Wrong

VERIFIERS = [TokenwiseRejection(), BlockVerification(), SampledMatch(), Traversal(), Typical()]


def of_type(verifier):
    return type(verifier).__name__


def few_rows(monkeypatch):
    monkeypatch.setattr("tempspec.testing.outcomes._MOST_ROWS", 5)


@pytest.mark.parametrize("verifier", VERIFIERS, ids=of_type)
def test_outcomes_are_exhaustive_and_possible(verifier):
    rounds = all_rounds(law_cases(3, 2)["laws with zeros"])
    total_B = torch.zeros(len(rounds.weight_B)).double()
    for outcome in outcomes(verifier, rounds.logp_BKV, rounds.draft):
        assert (outcome.weight_B > 0).all()
        total_B.index_add_(0, outcome.row_B, outcome.weight_B)
    torch.testing.assert_close(total_B, torch.ones_like(total_B))
    law = emitted_law(verifier, rounds)
    torch.testing.assert_close(law.sum(-1), torch.ones(len(rounds.groups)).double())


@pytest.mark.parametrize("verifier", VERIFIERS, ids=of_type)
def test_a_law_does_not_depend_on_the_rows_of_a_replay(verifier, monkeypatch):
    rounds = all_rounds(law_cases(3, 2)["unlike laws"])
    whole = emitted_law(verifier, rounds)
    few_rows(monkeypatch)
    torch.testing.assert_close(emitted_law(verifier, rounds), whole, rtol=0, atol=1e-15)


def test_what_is_verified_at_once_is_bounded(monkeypatch):
    class Counting(SampledMatch):
        def verify(self, logp_BKV, draft, noise):
            assert len(logp_BKV) == len(draft.token_BK) <= 5
            return super().verify(logp_BKV, draft, noise)

    few_rows(monkeypatch)
    trees = all_trees(law_cases(2, 1)["unlike laws"], (-1, -1), "independent")
    assert all(len(outcome.row_B) <= 5 for outcome in outcomes(Counting(), trees.logp_BKV, trees.draft))


class TwoCoins(Wrong):
    """Counts a coin of 3/4, and twice one of 1/4 that has the same noise."""

    def verify(self, logp_BKV, draft, noise):
        first_B, second_B = (noise.coins(torch.full((len(draft.token_BK), 1), chance))[:, 0] for chance in (0.75, 0.25))
        return Verdict(first_B + 2 * second_B, noise.draw(logp_BKV[:, 0].exp()))


def test_coins_of_one_decision_are_one_number_against_two_bounds():
    rounds = all_rounds(law_cases(2, 2)["unlike laws"])
    law = dict.fromkeys((0, 1, 2, 3), 0.0)
    for outcome in outcomes(TwoCoins(), rounds.logp_BKV, rounds.draft):
        for count, weight in zip(outcome.verdict.accepted_B.tolist(), outcome.weight_B.tolist(), strict=True):
            law[count] += weight / len(rounds.weight_B)
    assert law == pytest.approx({0: 0.25, 1: 0.5, 2: 0.0, 3: 0.25})  # the second alone cannot be


def test_an_error_names_the_row_of_the_batch():
    class Zero(Wrong):
        def verify(self, logp_BKV, draft, noise):
            accepted_B = noise.coins(torch.full((len(draft.token_BK), 1), 0.5))[:, 0].long()
            return Verdict(accepted_B, noise.draw(torch.ones(len(accepted_B), 2) * (draft.length_B != 1)[:, None]))

    rounds = all_rounds(law_cases(2, 2)["unlike laws"])
    row = int((rounds.draft.length_B == 1).nonzero()[0])
    assert row > 0
    with pytest.raises(ConformanceError, match=f"row {row}: such weights were given"):
        list(outcomes(Zero(), rounds.logp_BKV, rounds.draft))
