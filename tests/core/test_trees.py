import pytest
import torch

from tempspec.core.trees import (
    ancestry,
    chain_parents,
    depth_from_leaves,
    depths,
    expected_path,
    first_from_leaves,
    level_parents,
    onward,
    optimal_parents,
    path,
    postorder,
    steps,
    walk,
    walked_depth,
)
from tempspec.core.verification import first_rejection, last_success

SHAPES = [(-1,), (-1, 0, 1), (-1, -1, -1), level_parents([2, 2]), level_parents([3, 1, 2]), (-1, -1, 1, 1, 0, 2, 4)]


def recursive_postorder(parents):
    order = []

    def visit(node):
        for child, parent in enumerate(parents):
            if parent == node:
                visit(child)
        if node >= 0:
            order.append(node)

    visit(-1)
    return [order.index(node) for node in range(len(parents))]


def path_to(node, parents):
    return {node, *path_to(parents[node], parents)} if node >= 0 else set()


def coins(nodes):
    return (torch.arange(2**nodes)[:, None] >> torch.arange(nodes) & 1).bool()


@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_structure_equals_a_recursion(parents):
    parent = torch.tensor([parents])
    assert postorder(parent)[0].tolist() == recursive_postorder(parents)
    for node in range(len(parents)):
        expected = [other in path_to(node, parents) for other in range(len(parents))]
        assert ancestry(parent)[0, node].tolist() == expected
        assert path(torch.tensor([node]), parent)[0].tolist() == expected
        assert depths(parents)[node] == sum(expected)


@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_choices_equal_a_loop(parents):
    accept = coins(len(parents))
    parent = torch.tensor(parents).expand_as(accept)
    order = recursive_postorder(parents)
    walked, first_found = walk(accept, parent).tolist(), first_from_leaves(accept, parent).tolist()
    for row, coin in enumerate(accept.tolist()):
        here = -1
        while (child := next((n for n, p in enumerate(parents) if p == here and coin[n]), None)) is not None:
            here = child
        assert walked[row] == here
        first = min((node for node in range(len(parents)) if coin[node]), key=lambda node: order[node], default=-1)
        assert first_found[row] == first


def test_on_a_chain_the_choices_are_those_of_chains():
    accept, length = coins(4), torch.full((16,), 4)
    parent = chain_parents(4).expand_as(accept)
    assert torch.equal(walk(accept, parent) + 1, first_rejection(accept, length))
    assert torch.equal(first_from_leaves(accept, parent) + 1, last_success(accept, length))


def test_rows_may_have_trees_of_their_own():
    parent = torch.tensor([[-1, 0, 1], [-1, -1, 0], [-1, -1, -1]])
    together = postorder(parent)
    for row in range(3):
        assert torch.equal(together[row : row + 1], postorder(parent[row : row + 1]))


def test_no_nodes():
    parent, accept = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool)
    assert walk(accept, parent).tolist() == first_from_leaves(accept, parent).tolist() == [-1, -1]


def every_tree(nodes, deepest, ranks):
    """All trees of N nodes as sets of paths of ranks, closed under parents and elder siblings."""
    found = {frozenset()}
    for _ in range(nodes):
        found = {
            tree | {(*parent, rank)}
            for tree in found
            for parent in [(), *tree]
            for rank in range(ranks)
            if len(parent) < deepest and (*parent, rank) not in tree and (rank == 0 or (*parent, rank - 1) in tree)
        }
    return found


@pytest.mark.parametrize("chances", [[0.6, 0.3, 0.05], [0.9, 0.05, 0.01], [0.4, 0.3, 0.2], [0.3, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("deepest", [1, 2, 5])
def test_the_optimal_tree_is_the_best_of_all(chances, deepest):
    def value(tree):
        return sum(torch.tensor([chances[rank] for rank in ranks]).double().prod().item() for ranks in tree)

    best = max(value(tree) for tree in every_tree(5, deepest, 3)) if deepest > 1 else sum(chances)
    parents = optimal_parents(chances, 5, deepest)
    assert list(depths(parents)) == sorted(depths(parents))
    assert expected_path(parents, chances) == pytest.approx(best)


@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_what_coins_lead_to_is_the_mean_over_all_their_outcomes(parents):
    accept, generator = coins(len(parents)), torch.Generator().manual_seed(0)
    parent, every = torch.tensor([parents]), torch.tensor(parents).expand_as(accept)
    chance = torch.rand(1, len(parents), dtype=torch.float64, generator=generator)
    weight = torch.where(accept, chance, 1 - chance).prod(-1)
    step = steps(chance, parent)
    for found, node in (
        (walked_depth(step, parent), walk(accept, every)),
        (depth_from_leaves(chance, parent), first_from_leaves(accept, every)),
    ):
        assert found.item() == pytest.approx(float((weight * path(node, every).sum(-1)).sum()), abs=1e-12)
    passed = torch.nn.functional.pad(path(walk(accept, every), every), (1, 0), value=True)
    for place, chance_on in enumerate(onward(step, parent)[0].tolist()):
        here = weight * passed[:, place]
        on = (passed[:, 1:] & (parent == place - 1)).any(-1)
        assert float((here * on).sum()) == pytest.approx(chance_on * float(here.sum()), abs=1e-12)
