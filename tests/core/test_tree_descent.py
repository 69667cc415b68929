"""The short ways of recursive rejection decide as the rule that looks at every node."""

import pytest
import torch

from tempspec.core import hosts
from tempspec.core.children import Children
from tempspec.core.noise import uniform
from tempspec.core.sampling import one_hot_log
from tempspec.core.tree_descent import chosen_coins, descend
from tempspec.core.tree_verification import match_coins, match_steps, sibling_law, tree_coins, tree_weight
from tempspec.core.trees import ancestry, level_parents, path, walk

SHAPES = [level_parents([3, 2]), level_parents([2, 2, 1]), (-1, 0, 1, 2), (-1, -1, -1, 0, 0, 2, 4)]
ROWS, VOCABULARY = 200, 6


def laws(places, seed, spread):
    """Some with zeros."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(ROWS, places, VOCABULARY, generator=generator, dtype=torch.float64)
    none = torch.rand(logits.shape, generator=generator) < 0.2
    return logits.masked_fill(none & none.logical_not().any(-1, keepdim=True), -torch.inf).log_softmax(-1)


def drawn(parents, siblings, seed=0):
    """Trees of one shape, cut after some nodes: the target's laws, those drawn from, tokens, parents, lengths."""
    logq, nodes = laws(len(parents) + 1, seed + 1, 1.5), len(parents)
    token, logd = torch.zeros(ROWS, nodes, dtype=torch.int64), torch.zeros(ROWS, nodes, VOCABULARY).double()
    generator = torch.Generator().manual_seed(seed)
    for node, parent in enumerate(parents):
        elder = [other for other in range(node) if parents[other] == parent]
        q = logq[:, parent + 1]
        taken = torch.zeros(ROWS, VOCABULARY, dtype=torch.bool).scatter(1, token[:, elder], True)
        logd[:, node] = sibling_law(q, q, taken, len(elder), parents.count(parent), siblings)
        token[:, node] = torch.multinomial(logd[:, node].exp(), 1, generator=generator)[:, 0]
    length = torch.randint(nodes + 1, (ROWS,), generator=generator)
    return laws(nodes + 1, seed + 2, 1.5), logd, token, torch.tensor(parents).expand(ROWS, -1), length


def toss(probability):
    return uniform(torch.arange(len(probability))[:, None], 0, torch.arange(probability.shape[1])) < probability


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("siblings", ["independent", "distinct", "greedy", "top"])
@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_a_descent_ends_where_all_coins_lead(monkeypatch, parents, siblings, free):
    given = drawn(parents, siblings)
    coins = tree_coins(*given, joint=False)
    node = walk(toss(coins.coin_BN), given[3])
    monkeypatch.setattr(hosts, "reads_free", lambda value: free)
    for children in (Children.of(*given[3:]), Children.of_shape(parents, given[4])):
        end = descend(*given[:3], children, toss)
        assert torch.equal(end.node_B, node)
        assert torch.equal(end.depth_B, path(node, given[3]).sum(-1))
        weight = tree_weight(*given[:2], node, coins)
        torch.testing.assert_close(end.weight_BV, weight / weight.sum(-1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_of_chosen_children_no_law_need_be_looked_at(parents):
    logp, logd, token, parent, length = drawn(parents, "top")
    step, deepest = match_steps(logp, token, parent, length), int(ancestry(parent).sum(-1).max())
    tried = torch.arange(len(parents)) < length[:, None]
    for joint, found in ((False, match_coins(step, parent)), (True, chosen_coins(step, parent, deepest))):
        expected = tree_coins(logp, logd, token, parent, length, joint=joint).coin_BN
        settled = after_all_of_p(step, parent)
        assert not found[~tried].any()
        torch.testing.assert_close(found[tried & ~settled], expected[tried & ~settled], rtol=0, atol=1e-9)
    if deepest > 1:
        wrong = chosen_coins(step, parent, deepest - 1)
        assert (wrong - chosen_coins(step, parent, deepest)).abs().max() > 0.01


def after_all_of_p(step, parent):
    """Nodes after siblings that have all of p: they are never tried."""
    elder = (parent[:, :, None] == parent[:, None]) & torch.ones(parent.shape[1], parent.shape[1]).bool().tril(-1)
    return (elder * step[:, None]).sum(-1) > 1 - 1e-12


@pytest.mark.parametrize("joint", [False, True])
def test_a_certain_target_takes_its_child(joint):
    parents, length = torch.tensor([[-1, -1, 1]]), torch.tensor([3])
    token = torch.tensor([[2, 4, 1]])
    logp = one_hot_log(torch.tensor([[4, 0, 1, 3]]), VOCABULARY, torch.float64)
    step = match_steps(logp, token, parents, length)
    coins = chosen_coins(step, parents, 2) if joint else match_coins(step, parents)
    assert coins.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_children_of_a_known_shape_are_those_read(parents):
    length = torch.arange(len(parents) + 1)
    read = Children.of(torch.tensor(parents).expand(len(length), -1), length)
    known = Children.of_shape(parents, length)
    assert torch.equal(read.node_BNK, known.node_BNK[..., : read.node_BNK.shape[-1]])
    assert torch.equal(read.on_BNN, known.on_BNN)
    assert (read.most, read.levels) == (known.most, known.levels)
