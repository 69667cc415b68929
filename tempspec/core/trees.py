"""Token trees: who descends from whom, and which node a set of decisions accepts (floor 1).

A tree's nodes are numbered so that a parent comes before its children and siblings in the order they were drawn; node
0 need not be special. `parent_BN` holds each node's parent, -1 for a child of the root, which is the text so far and no
node. A chain is the tree with parents -1, 0, 1, .... What belongs to the root and all nodes has N + 1 entries, the
root's first: the law after node n is at n + 1.

Axes: B batch, N nodes, V vocabulary, D depth.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import torch
from torch import Tensor


def chain_parents(count: int, *, device: torch.device | None = None) -> Tensor:
    """The parents of a chain of `count` nodes, int64 `[N]`.

    >>> chain_parents(3)
    tensor([-1,  0,  1])
    """
    return torch.arange(-1, count - 1, device=device)


def level_parents(levels: Sequence[int]) -> tuple[int, ...]:
    """The parents of the tree whose every node at depth d has `levels[d]` children, level by level.

    >>> level_parents([2, 1])
    (-1, -1, 0, 1)
    """
    parents: list[int] = []
    above = [-1]
    for children in levels:
        start = len(parents)
        parents += [node for node in above for _ in range(children)]
        above = list(range(start, len(parents)))
    return tuple(parents)


def depths(parents: Sequence[int]) -> tuple[int, ...]:
    """The depth of each node, 1 for the root's children.

    >>> depths((-1, -1, 0, 2))
    (1, 1, 2, 3)
    """
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return tuple(found)


def ancestry(parent_BN: Tensor, deepest: int | None = None) -> Tensor:
    """Which nodes lie on the path to each node, itself included: bool `[B, N, N]`, `[b, i, j]` for j on the path to i.

    The attention mask of a tree's nodes among themselves. Each product doubles the steps up that are known.

    Args:
        parent_BN: the nodes' parents.
        deepest: the length of the longest path or more, where it is known; fewer products then.

    >>> ancestry(torch.tensor([[-1, 0, 0]])).int()
    tensor([[[1, 0, 0],
             [1, 1, 0],
             [1, 0, 1]]], dtype=torch.int32)
    """
    nodes = parent_BN.shape[1]
    node_N = torch.arange(nodes, device=parent_BN.device)
    on_BNN = ((parent_BN[..., None] == node_N) | (node_N[:, None] == node_N)).float()
    longest = nodes if deepest is None else min(deepest, nodes)
    for _ in range(max(longest - 2, 0).bit_length()):
        on_BNN = (on_BNN @ on_BNN).clamp_(max=1.0)
    return on_BNN > 0


def grown(on_BNN: Tensor | None, parent_BM: Tensor) -> Tensor:
    """The `ancestry` of a tree to which M nodes are added whose parents it holds; None for one without nodes.

    >>> on = grown(None, torch.tensor([[-1, -1]]))
    >>> torch.equal(grown(on, torch.tensor([[1, -1]])), ancestry(torch.tensor([[-1, -1, 1, -1]])))
    True
    """
    added = parent_BM.shape[1]
    own_BMM = torch.eye(added, dtype=torch.bool, device=parent_BM.device).expand(len(parent_BM), -1, -1)
    if on_BNN is None:
        return own_BMM
    at_BMN = (parent_BM + 1)[..., None].expand(-1, -1, on_BNN.shape[-1])
    above_BMN = torch.nn.functional.pad(on_BNN, (0, 0, 1, 0)).gather(1, at_BMN)
    return torch.cat([torch.nn.functional.pad(on_BNN, (0, added)), torch.cat([above_BMN, own_BMM], -1)], 1)


def with_root(on_BNN: Tensor) -> Tensor:
    """The `ancestry` of a tree's root and its nodes, the root's row and column first, `[B, N+1, N+1]`.

    >>> with_root(torch.ones(1, 1, 1, dtype=torch.bool)).int()
    tensor([[[1, 0],
             [1, 1]]], dtype=torch.int32)
    """
    return torch.nn.functional.pad(torch.nn.functional.pad(on_BNN, (0, 0, 1, 0)), (1, 0), value=True)


def postorder(parent_BN: Tensor, on_BNN: Tensor | None = None) -> Tensor:
    """Each node's place when children come before their parent and siblings in order, int64 `[B, N]`.

    Args:
        parent_BN: the nodes' parents.
        on_BNN: the tree's `ancestry`, where it is known.

    >>> postorder(torch.tensor([[-1, -1, 0, 0]]))
    tensor([[2, 3, 0, 1]])
    """
    on_BNN = ancestry(parent_BN) if on_BNN is None else on_BNN
    size_BN = on_BNN.sum(1)
    skipped_BN = (elder(parent_BN) * size_BN[:, None]).sum(-1)  # the subtrees of the node's elder siblings
    return (on_BNN * skipped_BN[:, None]).sum(-1) + size_BN - 1


def elder(parent_BN: Tensor) -> Tensor:
    """Which nodes are elder siblings of each node, bool `[B, N, N]`, `[b, i, j]` for j an elder sibling of i.

    >>> elder(torch.tensor([[-1, -1, 0]])).int()
    tensor([[[0, 0, 0],
             [1, 0, 0],
             [0, 0, 0]]], dtype=torch.int32)
    """
    node_N = torch.arange(parent_BN.shape[1], device=parent_BN.device)
    return (parent_BN[:, :, None] == parent_BN[:, None, :]) & (node_N < node_N[:, None])


def walk(accept_BN: Tensor, parent_BN: Tensor, on_BNN: Tensor | None = None, elder_BNN: Tensor | None = None) -> Tensor:
    """From the root down, go to the first accepted child, again and again; the last one, -1 for none, `[B]`.

    Args:
        accept_BN: whether each node is accepted when it is tried.
        parent_BN: their parents.
        on_BNN: the tree's `ancestry`, where it is known.
        elder_BNN: its `elder`, likewise.

    >>> walk(torch.tensor([[False, True, True, True]]), torch.tensor([[-1, -1, 0, 1]]))
    tensor([3])
    """
    nodes = parent_BN.shape[1]
    if nodes == 0:
        return parent_BN.new_full((len(parent_BN),), -1)
    elder_BNN = elder(parent_BN) if elder_BNN is None else elder_BNN
    chosen_BN = accept_BN & ~(elder_BNN & accept_BN[:, None]).any(-1)
    on_BNN = ancestry(parent_BN) if on_BNN is None else on_BNN
    passed_BN = ~(on_BNN & ~chosen_BN[:, None]).any(-1)
    node_N = torch.arange(nodes, device=parent_BN.device)
    return torch.where(passed_BN, node_N, -1).amax(1)  # of a path the last is the deepest


def first_from_leaves(accept_BN: Tensor, parent_BN: Tensor, order_BN: Tensor | None = None) -> Tensor:
    """The accepted node that comes first when children come before parents, -1 if none is accepted, int64 `[B]`.

    On a chain: the deepest.

    Args:
        accept_BN: whether each node is accepted when it is tried.
        parent_BN: their parents.
        order_BN: the tree's `postorder`, where it is known.

    >>> first_from_leaves(torch.tensor([[True, True, False, True]]), torch.tensor([[-1, -1, 0, 1]]))
    tensor([0])
    """
    nodes = parent_BN.shape[1]
    if nodes == 0:
        return parent_BN.new_full((len(parent_BN),), -1)
    order_BN = postorder(parent_BN) if order_BN is None else order_BN
    least_B, node_B = order_BN.masked_fill(~accept_BN, nodes).min(-1)
    return torch.where(least_B < nodes, node_B, -1)


def path(node_B: Tensor, parent_BN: Tensor, on_BNN: Tensor | None = None) -> Tensor:
    """Which nodes lie on the path to each row's node, bool `[B, N]`; none where the node is -1.

    Args:
        node_B: the nodes.
        parent_BN: all nodes' parents.
        on_BNN: the tree's `ancestry`, where it is known.

    >>> path(torch.tensor([2, -1]), torch.tensor([[-1, -1, 0], [-1, 0, 1]])).int()
    tensor([[1, 0, 1],
            [0, 0, 0]], dtype=torch.int32)
    """
    if parent_BN.shape[1] == 0:
        return torch.zeros_like(parent_BN, dtype=torch.bool)
    at_B1N = node_B.clamp(min=0)[:, None, None].expand(-1, 1, parent_BN.shape[1])
    on_BNN = ancestry(parent_BN) if on_BNN is None else on_BNN
    return on_BNN.gather(1, at_B1N).squeeze(1) & (node_B >= 0)[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# What a tree's decisions lead to, without drawing them
# ---------------------------------------------------------------------------------------------------------------------


def steps(coin_BN: Tensor, parent_BN: Tensor) -> Tensor:
    """P(`walk` goes to each node | it is at its parent): the node is accepted, its elder siblings were not.

    >>> steps(torch.tensor([[0.5, 0.5, 1.0]]), torch.tensor([[-1, -1, 0]]))
    tensor([[0.5000, 0.2500, 1.0000]])
    """
    failed_BNN = torch.where(elder(parent_BN), 1.0 - coin_BN[:, None], 1.0)
    return coin_BN * failed_BNN.prod(-1)


def onward(step_BN: Tensor, parent_BN: Tensor) -> Tensor:
    """P(some child is accepted | place i was reached), `[B, N]`; place 0 is the root and place i node i - 1.

    The last node has no children.

    >>> onward(torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([[-1, -1, 0]]))
    tensor([[0.7500, 1.0000, 0.0000]])
    """
    return torch.zeros_like(step_BN).scatter_add_(1, parent_BN + 1, step_BN)


def walked_depth(step_BN: Tensor, parent_BN: Tensor) -> Tensor:
    """E[depth of the node that `walk` ends at], `[B]`, from `steps`: every node's chance to be passed, summed.

    >>> walked_depth(torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([[-1, -1, 0]]))
    tensor([1.2500])
    """
    return torch.where(ancestry(parent_BN), step_BN[:, None], 1.0).prod(-1).sum(-1)


def depth_from_leaves(coin_BN: Tensor, parent_BN: Tensor) -> Tensor:
    """E[depth of `first_from_leaves`], `[B]`, from the nodes' accept probabilities.

    >>> depth_from_leaves(torch.tensor([[0.5, 0.5]]), torch.tensor([[-1, 0]]))
    tensor([1.2500])
    """
    place_BN = postorder(parent_BN)
    failed_BNN = torch.where(place_BN[:, None] < place_BN[..., None], 1.0 - coin_BN[:, None], 1.0)
    return (coin_BN * failed_BNN.prod(-1) * ancestry(parent_BN).sum(-1)).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# The best static tree
# ---------------------------------------------------------------------------------------------------------------------


def optimal_parents(rank_acceptance: Sequence[float], nodes: int, deepest: int) -> tuple[int, ...]:
    """The static tree of `nodes` nodes whose expected accepted length is largest, level by level.

    If the k-th child of any node is the accepted one with probability b_k, a node is reached with the product of the
    b's on its path, and the expected length is the sum of these products: the best nodes are taken one by one. The
    optimum of Sequoia's dynamic programme (Chen et al. 2024, 2402.12374), which also weighs depth against time: compare
    `expected_path` of several depths for that.

    Args:
        rank_acceptance: b_1, b_2, ...; taken as if they did not rise.
        nodes: N, at least 1.
        deepest: the longest path.

    >>> optimal_parents([0.6, 0.2], 4, 3)
    (-1, -1, 0, 2)
    """
    falling = [min(rank_acceptance[: rank + 1]) for rank in range(len(rank_acceptance))]
    # Each entry: minus the node's value, its path of ranks (which breaks ties).
    waiting: list[tuple[float, tuple[int, ...]]] = [(-falling[0], (0,))]
    chosen: list[tuple[int, ...]] = []
    while waiting and len(chosen) < nodes:
        value, ranks = heappop(waiting)
        chosen.append(ranks)
        if ranks[-1] + 1 < len(falling) and falling[ranks[-1]] > 0:
            sibling = value / falling[ranks[-1]] * falling[ranks[-1] + 1]
            heappush(waiting, (sibling, (*ranks[:-1], ranks[-1] + 1)))
        if len(ranks) < deepest:
            heappush(waiting, (value * falling[0], (*ranks, 0)))
    chosen.sort(key=lambda ranks: (len(ranks), ranks))
    number = {ranks: node for node, ranks in enumerate(chosen)}
    return tuple(number.get(ranks[:-1], -1) for ranks in chosen)


def expected_path(parents: Sequence[int], rank_acceptance: Sequence[float]) -> float:
    """The expected accepted length of a tree whose k-th child is the accepted one with probability b_k.

    >>> expected_path((-1, -1, 0), [0.5, 0.25])
    1.0
    """
    value: list[float] = []
    for node, parent in enumerate(parents):
        rank = parents[:node].count(parent)
        chance = rank_acceptance[rank] if rank < len(rank_acceptance) else 0.0
        value.append(chance * (value[parent] if parent >= 0 else 1.0))
    return sum(value)
