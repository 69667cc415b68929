"""Rules of trees: the published figures, the order that theory demands, and controls that are off by known amounts."""

from dataclasses import replace

import pytest
import torch

from tempspec.core import k_sequential, tree_verification
from tempspec.core.trees import level_parents
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, SampledMatch, TokenwiseRejection
from tempspec.testing.enumeration import LawError, all_rounds, all_trees, emitted_law, mean_accepted
from tempspec.testing.laws import context_free, law_cases

P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
Q = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64)
ONE = {
    (RecursiveRejection, "independent"): (0.755000, 0.819000),
    (KSequential, "independent"): (0.788098, 0.858519),
    (Traversal, "independent"): (0.755000, 0.819000),
    (RecursiveRejection, "distinct"): (0.807143, 0.934762),
    (Traversal, "distinct"): (0.807143, 0.934762),
    (RecursiveRejection, "greedy"): (0.833333, 1.0),
    (Traversal, "greedy"): (0.833333, 1.0),
}
TWO = {
    (RecursiveRejection, "distinct"): 1.458622,
    (Traversal, "distinct"): 1.527598,
    (RecursiveRejection, "greedy"): 1.527778,
    (Traversal, "greedy"): 1.591667,
}
TWO_INDEPENDENT = {RecursiveRejection: 1.325025, KSequential: 1.409197, Traversal: 1.404775}


def name(value):
    return value.__name__ if isinstance(value, type) else str(value)


def mean(rule, pair, shape, siblings):
    return mean_accepted(rule(), all_trees(pair, shape, siblings))[-1]


@pytest.mark.parametrize(("rule", "siblings"), ONE, ids=name)
@pytest.mark.parametrize("children", [2, 3])
def test_one_level_of_case_a(rule, siblings, children):
    found = mean(rule, context_free(P, Q, 1), (-1,) * children, siblings)
    assert found == pytest.approx(ONE[rule, siblings][children - 2], abs=1e-6)


@pytest.mark.parametrize(("rule", "siblings"), TWO, ids=name)
def test_two_levels_of_case_a(rule, siblings):
    found = mean(rule, context_free(P, Q, 2), level_parents([2, 2]), siblings)
    assert found == pytest.approx(TWO[rule, siblings], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", TWO_INDEPENDENT, ids=name)
def test_two_levels_of_independent_children_of_case_a(rule):
    pair, shape = context_free(P, Q, 2), level_parents([2, 2])
    rounds = all_trees(pair, shape, "independent")
    assert mean_accepted(rule(), rounds)[-1] == pytest.approx(TWO_INDEPENDENT[rule], abs=1e-6)
    assert LawError.between(emitted_law(rule(), rounds), pair.target_law()).largest < 1e-10


@pytest.mark.parametrize("case", ["unlike laws", "laws with zeros"])
def test_without_draws_traversal_accepts_as_recursive_rejection(case):
    """Both accept a path with the target's mass on it, whatever the order of the coins."""
    pair = law_cases(3, 2)[case]
    found = [mean(rule, pair, (-1, -1, 0, 0), "top") for rule in (RecursiveRejection, Traversal, SampledMatch)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-12)


def test_top_children_are_accepted_with_the_targets_mass_on_them():
    assert mean(RecursiveRejection, context_free(P, Q, 1), (-1, -1), "top") == pytest.approx(0.35)


@pytest.mark.parametrize("case", ["unlike laws", "laws with zeros", "sharp laws", "one-hot draft"])
def test_the_order_that_theory_demands(case):
    one, two = law_cases(3, 1)[case], law_cases(3, 2)[case]
    optimum = float(tree_verification.optimal_acceptance(one.logp[0][0], one.logq[0][0], 2))
    single = mean_accepted(TokenwiseRejection(), all_rounds(one))[1]
    recursive, sequential = (mean(rule, one, (-1, -1), "independent") for rule in (RecursiveRejection, KSequential))
    assert single - 1e-6 <= sequential <= optimum + 1e-10
    assert single - 1e-10 <= recursive <= optimum + 1e-10
    for siblings in ("independent", "distinct", "greedy"):
        shape = (-1, -1, 0, 1)
        top_down, traversal = (mean(rule, two, shape, siblings) for rule in (RecursiveRejection, Traversal))
        assert traversal >= top_down - 1e-10
        assert top_down >= mean(SampledMatch, two, shape, siblings) - 1e-10


@pytest.mark.parametrize("case", law_cases(3, 3))
def test_on_a_chain_traversal_is_block_the_others_tokenwise(case):
    rounds = all_rounds(law_cases(3, 3)[case])
    for rule, chain in (
        (Traversal(), BlockVerification()),
        (RecursiveRejection(), TokenwiseRejection()),
        (KSequential(), TokenwiseRejection()),
    ):
        torch.testing.assert_close(emitted_law(rule, rounds), emitted_law(chain, rounds), rtol=0, atol=1e-10)
        assert mean_accepted(rule, rounds) == pytest.approx(mean_accepted(chain, rounds), abs=1e-10)


def test_equal_laws_accept_a_whole_path_disjoint_ones_nothing():
    for rule in (RecursiveRejection, KSequential, Traversal):
        assert mean(rule, law_cases(3, 2)["equal laws"], (-1, -1, 0, 1), "independent") == pytest.approx(2.0)
        assert mean(rule, law_cases(3, 2)["disjoint laws"], (-1, -1, 0, 1), "independent") == 0.0


def test_closed_forms_of_one_level_are_the_rules():
    pair = law_cases(4, 1)["unlike laws"]
    logp, logq = pair.logp[0][0], pair.logq[0][0]
    for closed, rule, siblings in (
        (tree_verification.recursive_acceptance, RecursiveRejection, "independent"),
        (k_sequential.sequential_acceptance, KSequential, "independent"),
        (tree_verification.greedy_draft_acceptance, RecursiveRejection, "greedy"),
    ):
        for count in (2, 3):
            found = mean(rule, pair, (-1,) * count, siblings)
            assert float(closed(logp, logq, count)) == pytest.approx(found, abs=1e-9)


# -- negative controls -------------------------------------------------------------------------------------------------


def off_by(rule, rounds):
    return LawError.between(emitted_law(rule, rounds)[-1], rounds.pair.target_law()).total_variation


def test_distinct_siblings_verified_as_independent_are_biased():
    rounds = all_trees(context_free(P, Q, 1), (-1, -1), "distinct")
    wrong = replace(rounds.draft, logq_BKV=Q.log().expand_as(rounds.draft.logq_BKV))
    for rule in (RecursiveRejection(), Traversal()):
        assert off_by(rule, rounds) < 1e-12
        assert off_by(rule, replace(rounds, draft=wrong)) > 0.01


def test_siblings_out_of_the_order_they_were_drawn_in_are_biased():
    rounds = all_trees(context_free(P, Q, 1), (-1, -1), "distinct")
    draft = rounds.draft
    swapped = replace(draft, token_BK=draft.token_BK.flip(1), logq_BKV=draft.logq_BKV.flip(1))
    assert off_by(RecursiveRejection(), replace(rounds, draft=swapped)) > 0.01


def test_dropping_a_drawn_token_by_its_probability_is_biased():
    """The anticipation rule: a draft length that looks at a token and drops it (here below q = .25)."""
    rounds = all_rounds(context_free(P, Q, 1))
    dropped = (rounds.draft.length_B == 1) & (Q[rounds.draft.token_BK[:, 0]] < 0.25)
    draft = replace(rounds.draft, length_B=rounds.draft.length_B.masked_fill(dropped, 0))
    for rule in (TokenwiseRejection(), BlockVerification(), Traversal()):
        assert off_by(rule, rounds) < 1e-12
        assert off_by(rule, replace(rounds, draft=draft)) > 0.05


def test_pruning_drawn_nodes_by_their_own_score_is_biased():
    rounds = all_trees(context_free(P, Q, 1), (-1, -1), "distinct")
    second = Q[rounds.draft.token_BK[:, 1]] < 0.25
    length_B = torch.where(second & (rounds.draft.length_B == 2), 1, rounds.draft.length_B)
    pruned = replace(rounds, draft=replace(rounds.draft, length_B=length_B))
    assert off_by(RecursiveRejection(), pruned) > 0.01
