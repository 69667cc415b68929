"""Growing a tree as planned gives its nodes in order, each from its parent."""

import pytest
import torch

from tempspec.core.tree_shapes import growth, selected
from tempspec.core.trees import depths, level_parents

SHAPES = [(-1,), (-1, 0, 1), (-1, -1, -1), level_parents([2, 2]), level_parents([3, 1, 2]), (-1, -1, 1, 0, 1, 2, 4)]


@pytest.mark.parametrize("parents", SHAPES, ids=str)
def test_growth_names_every_node_once_below_its_parent(parents):
    plan = growth(parents, torch.device("cpu"))
    above, fed, nodes = torch.tensor([[-1]]), [-1], []
    for level in plan.levels:
        inner = selected(above, level.inner_P)
        assert [fed[number + 1] for number in level.parent_P.tolist()] == [
            parents[node] if node >= 0 else -1 for node in inner[0].tolist()
        ]
        if nodes:
            fed += inner[0].tolist()
        born = []
        for brood in level.broods:
            ranks = torch.stack(brood.children, 1)
            assert ranks.shape[1] == brood.size
            for parent, children in zip(selected(inner, brood.place_P)[0].tolist(), ranks.tolist(), strict=True):
                assert children == [node for node, above_it in enumerate(parents) if above_it == parent]
            born += ranks.flatten().tolist()
        above = selected(torch.tensor([born]), level.order_M)
        assert level.node_M.tolist() == above[0].tolist()
        assert inner[0, level.under_M].tolist() == [parents[node] for node in level.node_M.tolist()]
        nodes += above[0].tolist()
    assert nodes == list(range(len(parents)))
    assert plan.parent_N.tolist() == list(parents)
    deep = depths(parents)
    assert plan.upto_L.tolist() == [sum(depth <= limit for depth in deep) for limit in range(max(deep) + 1)]
