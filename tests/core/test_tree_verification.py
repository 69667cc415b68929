import itertools

import pytest
import torch

from tempspec.core.acceptance import overlap
from tempspec.core.k_sequential import sequential_acceptance
from tempspec.core.noise import gumbel
from tempspec.core.sampling import one_hot_log
from tempspec.core.tree_verification import (
    greedy_draft_acceptance,
    is_drawn,
    match_steps,
    optimal_acceptance,
    optimal_pair,
    optimal_siblings,
    recursive_acceptance,
    sibling_law,
    tree_coins,
)

SPREADS = {"flat": 0.3, "ordinary": 1.0, "sharp": 20.0}


def laws(vocabulary, spread, seed, rows=300):
    row, token = torch.arange(rows)[:, None], torch.arange(vocabulary)
    return (spread * gumbel(seed, row, token)).log_softmax(-1)


def test_greedy_drafts_draw_their_eldest_alone_and_top_ones_none():
    drawn = {siblings: [is_drawn(siblings, rank) for rank in range(3)] for siblings in ("distinct", "greedy", "top")}
    assert drawn == {"distinct": [True] * 3, "greedy": [True, False, False], "top": [False] * 3}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize(("vocabulary", "count"), [(3, 2), (5, 3), (40, 8)])
def test_every_rule_accepts_between_one_draft_and_the_optimum(vocabulary, count, spread):
    logp, logq = laws(vocabulary, spread, 1), laws(vocabulary, spread, 2)
    optimum, single = optimal_acceptance(logp, logq, count), optimal_acceptance(logp, logq, 1)
    torch.testing.assert_close(single, torch.minimum(logp.exp(), logq.exp()).sum(-1))
    for rule in (recursive_acceptance, sequential_acceptance):
        accepted = rule(logp, logq, count)
        assert (accepted <= optimum + 1e-12).all()
        assert (accepted >= single - 1e-5).all()  # the division is found to that


def test_the_optimum_is_the_linear_programs():
    """Brute force: the minimum over every set of tokens, not over the sorted prefixes alone."""
    logp, logq = laws(7, 1.0, 3, rows=50), laws(7, 1.0, 4, rows=50)
    member = (torch.arange(2**7)[:, None] >> torch.arange(7) & 1).double()
    every = (logp.exp() @ member.T - (logq.exp() @ member.T) ** 3).amin(-1) + 1
    torch.testing.assert_close(optimal_acceptance(logp, logq, 3), every)


def test_greedy_drafts_of_the_whole_vocabulary_are_accepted():
    assert greedy_draft_acceptance(laws(4, 1.0, 1), laws(4, 1.0, 2), 4).tolist() == pytest.approx([1.0] * 300)


def test_siblings_without_replacement_follow_gumbel_top_k():
    """The chance of an ordered pair, drawn child by child, is the product that Kool et al. 2019 state."""
    logq = laws(4, 1.0, 1, rows=1)
    q = logq[0].exp()
    taken = torch.zeros(1, 4, dtype=torch.bool)
    for first in range(4):
        elder = taken.clone()
        elder[0, first] = True
        law = sibling_law(logq, logq, elder, 1, 2, "distinct")[0].exp()
        expected = torch.where(elder[0], 0.0, q / (1 - q[first]))
        torch.testing.assert_close(law, expected)


@pytest.mark.parametrize("siblings", ["distinct", "greedy", "top"])
def test_siblings_never_repeat_a_token_even_where_q_is_certain(siblings):
    logq = torch.full((1, 5), -torch.inf).index_fill(1, torch.tensor([3]), 0.0)
    taken, seen = torch.zeros(1, 5, dtype=torch.bool), []
    for rank in range(5):
        law = sibling_law(logq, torch.arange(5.0)[None], taken, rank, 5, siblings)
        assert law.exp().sum() == 1
        token = law.argmax(-1, keepdim=True)
        seen.append(int(token))
        taken = taken.scatter(1, token, True)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_the_optimum_of_siblings_is_that_of_how_they_were_drawn():
    logp, logq = laws(6, 1.0, 1, rows=4), laws(6, 1.0, 2, rows=4)
    child = torch.tensor([[0, 2, 1], [0, 2, -1], [1, -1, -1], [-1, -1, -1]])
    three, two, one = (optimal_acceptance(logp, logq, count) for count in (3, 2, 1))
    token = torch.tensor([[3, 1, 4]] * 4)
    found = optimal_siblings(logp, logq[:, None].expand(-1, 3, -1), token, child, "independent")
    torch.testing.assert_close(found, torch.stack([three[0], two[1], one[2], torch.zeros(()).double()]))
    certain = one_hot_log(token, 6, torch.float64)
    mass = logp.exp().gather(1, token)
    found = optimal_siblings(logp, certain, token, child, "top")
    expected = torch.stack([mass[0].sum(), mass[1, [0, 2]].sum(), mass[2, 1], mass[3, 0] * 0])
    torch.testing.assert_close(found, expected)


def both_inside(q, member):
    """P(two distinct drafts lie in a set), pair by pair."""
    pairs = itertools.permutations(range(len(q)), 2)
    return sum(q[a] * q[b] / (1 - q[a]) for a, b in pairs if member[a] and member[b])


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_the_optimum_of_two_distinct_drafts_is_the_lps(spread):
    """Brute force over every set of tokens and every pair of drafts."""
    logp, logq = laws(5, spread, 3, rows=20), laws(5, spread, 4, rows=20)
    members = list(itertools.product([False, True], repeat=5))
    for p, q, found in zip(logp.exp(), logq.exp(), optimal_pair(logp, logq), strict=True):
        if 1 - q.max() > 1e-6:  # pair by pair, 1 - q would cancel
            every = min(1 + p[list(member)].sum() - both_inside(q, member) for member in members)
            torch.testing.assert_close(found, every, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_two_distinct_drafts_beat_two_independent_ones(spread):
    logp, logq = laws(40, spread, 3), laws(40, spread, 4)
    assert (optimal_pair(logp, logq) >= optimal_acceptance(logp, logq, 2) - 1e-9).all()
    assert (optimal_pair(logp, logp) > 1 - 1e-9).all()


def test_the_optimum_of_a_certain_draft_and_another():
    """One child, two, none; where the first is certain the second has the law that it was drawn from."""
    logp, certain = laws(5, 1.0, 3, rows=4), one_hot_log(torch.tensor([2]), 5, torch.float64).expand(4, -1)
    token = torch.tensor([[2, 0]]).expand(4, -1)
    child = torch.tensor([[0, 1], [0, -1], [-1, -1], [0, 1]])
    second = one_hot_log(torch.tensor([0]), 5, torch.float64).expand(4, -1)
    p = logp.exp()
    found = optimal_siblings(logp, torch.stack([certain, second], 1), token, child, "distinct")
    torch.testing.assert_close(found, torch.stack([p[0, 2] + p[0, 0], p[1, 2], 0 * p[2, 0], p[3, 2] + p[3, 0]]))
    cold = (1000 * laws(5, 1.0, 4, rows=4)).log_softmax(-1)  # nothing but the first in float64, and yet a second
    first = cold.argmax(-1)
    other = cold.scatter(1, first[:, None], -torch.inf).log_softmax(-1)
    token = torch.stack([first, other.argmax(-1)], 1)
    found = optimal_siblings(logp, torch.stack([cold, other], 1), token, child[:1].expand(4, -1), "distinct")
    torch.testing.assert_close(found, p.gather(1, token).sum(1))


def test_greedy_siblings_reach_their_optimum():
    logp, logq = laws(6, 1.0, 1, rows=20), laws(6, 1.0, 2, rows=20)
    taken, drawn, tokens = torch.zeros(20, 6, dtype=torch.bool), [], []
    for rank in range(3):
        drawn.append(sibling_law(logq, logq, taken, rank, 3, "greedy"))
        tokens.append(drawn[-1].argmax(-1))
        taken = taken.scatter(1, tokens[-1][:, None], True)
    child = torch.arange(3).expand(20, -1)
    found = optimal_siblings(logp, torch.stack(drawn, 1), torch.stack(tokens, 1), child, "greedy")
    torch.testing.assert_close(found, greedy_draft_acceptance(logp, logq, 3))
    none = optimal_siblings(logp, torch.stack(drawn, 1), torch.stack(tokens, 1), torch.full((20, 3), -1), "greedy")
    assert not none.any()
    assert (found >= overlap(logp, logq)).all()


def test_the_targets_token_goes_to_the_first_child_that_has_it():
    logp = laws(4, 1.0, 1, rows=2)[:, None].expand(-1, 4, -1)
    token, parent = torch.tensor([[1, 1, 2, 1]] * 2), torch.tensor([[-1, -1, 0, 0]] * 2)
    step = match_steps(logp, token, parent, torch.tensor([4, 3]))
    p = logp[:, 0].exp()
    torch.testing.assert_close(step, torch.stack([p[:, 1], 0 * p[:, 1], p[:, 2], p[:, 1] * torch.tensor([1, 0])], 1))


@pytest.mark.parametrize("joint", [False, True])
def test_rows_of_other_shapes_change_no_bit_of_a_row(joint):
    shapes = [(-1, -1, 0, 0, 1, 4, 4), (-1, 0, 1, 2, 3, 4, 5), (-1,) * 7, (-1, -1, -1, 0, 2, 2, 5)]
    parent, length = torch.tensor(shapes), torch.tensor([7, 5, 6, 0])
    logp, logd = laws(5, 2.0, 0, rows=4 * 8).view(4, 8, 5), laws(5, 2.0, 1, rows=4 * 7).view(4, 7, 5)
    given = logp, logd, torch.arange(28).view(4, 7) % 5, parent, length
    together = tree_coins(*given, joint=joint)
    for row in range(4):
        alone = tree_coins(*(value[row : row + 1] for value in given), joint=joint)
        assert torch.equal(together.coin_BN[row], alone.coin_BN[0])
        assert torch.equal(together.reach_BN[row], alone.reach_BN[0])
