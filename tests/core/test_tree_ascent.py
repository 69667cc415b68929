"""The short way of traversal verification decides as the rule that looks at every node by itself."""

import pytest
import torch

from tempspec.core import hosts
from tempspec.core.children import Children
from tempspec.core.tree_ascent import ascend, following
from tempspec.core.tree_verification import tree_coins, tree_weight
from tempspec.core.trees import first_from_leaves
from tests.core.test_tree_descent import SHAPES, drawn, toss


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("siblings", ["independent", "distinct", "greedy", "top"])
@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_an_ascent_decides_as_all_coins_do(monkeypatch, parents, siblings, free):
    given = drawn(parents, siblings)
    coins = tree_coins(*given, joint=True)
    node = first_from_leaves(toss(coins.coin_BN), given[3])
    weight = tree_weight(*given[:2], node, coins)
    monkeypatch.setattr(hosts, "reads_free", lambda value: free)
    for children in (Children.of(*given[3:]), Children.of_shape(parents, given[4])):
        ascent = ascend(*given[:3], children)
        torch.testing.assert_close(ascent.coin_BN, coins.coin_BN, rtol=0, atol=1e-12)
        assert torch.equal(first_from_leaves(toss(ascent.coin_BN), given[3]), node)
        found = following(given[0], node, ascent)
        torch.testing.assert_close(normal(found), normal(weight), rtol=0, atol=1e-11)


def normal(weight):
    return weight / weight.sum(-1, keepdim=True)


def test_single_precision_decides_as_double_does():
    given = drawn(SHAPES[1], "distinct")
    exact = ascend(*given[:3], Children.of(*given[3:]))
    rough = ascend(given[0].float(), given[1].float(), given[2], Children.of(*given[3:]))
    torch.testing.assert_close(rough.coin_BN, exact.coin_BN, rtol=0, atol=2e-6)


def test_what_follows_another_node_is_another_law():
    given = drawn(SHAPES[0], "distinct")
    ascent = ascend(*given[:3], Children.of(*given[3:]))
    root, first = (following(given[0], torch.full((len(given[4]),), node), ascent) for node in (-1, 0))
    assert (normal(root) - normal(first)).abs().amax(-1).nanmedian() > 0.1


def test_a_tree_without_nodes_leaves_p():
    logp, none = torch.randn(3, 1, 5).log_softmax(-1), torch.zeros(3, 0, dtype=torch.int64)
    ascent = ascend(logp, torch.zeros(3, 0, 5), none, Children.of_shape((), torch.zeros(3, dtype=torch.int64)))
    assert ascent.coin_BN.shape == (3, 0)
    torch.testing.assert_close(following(logp, torch.full((3,), -1), ascent), logp[:, 0].exp())


def test_rows_of_other_shapes_change_no_bit_of_an_ascent():
    shapes = [(-1, -1, 0, 0, 1, 4, 4), (-1, 0, 1, 2, 3, 4, 5), (-1,) * 7, (-1, -1, -1, 0, 2, 2, 5)]
    parent, length = torch.tensor(shapes), torch.tensor([7, 5, 6, 0])
    logp, logd = (torch.randn(4, places, 5).log_softmax(-1) for places in (8, 7))
    token = torch.arange(28).view(4, 7) % 5
    together = ascend(logp, logd, token, Children.of(parent, length))
    for row in range(4):
        one = slice(row, row + 1)
        alone = ascend(logp[one], logd[one], token[one], Children.of(parent[one], length[one]))
        assert torch.equal(together.coin_BN[row], alone.coin_BN[0])
        for node in range(-1, 7):
            at = torch.full((4,), node)
            both = following(logp, at, together)[row], following(logp[one], at[:1], alone)[0]
            assert torch.equal(*both)
