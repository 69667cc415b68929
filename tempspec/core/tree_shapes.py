"""What a device is told once of a tree whose shape never changes (floor 1).

Node order: see `tempspec.core.trees`.

Axes: N nodes, M nodes of one level, P parents with equally many children, L limits on the depth.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core.trees import depths


class Brood(NamedTuple):
    """The nodes of a level that have equally many children.

    Attributes:
        size: how many each has.
        place_P: which of the level's inner nodes they are; None for all.
        children: by rank, the numbers of their children, `[P]` each.
    """

    size: int
    place_P: Tensor | None
    children: tuple[Tensor, ...]


class Level(NamedTuple):
    """How the nodes of one level come about.

    Attributes:
        inner_P: which nodes of the level above have children; None for all.
        parent_P: the number that each of these nodes' parents was fed with, -1 for the root.
        node_M: the numbers of the level's nodes, in order.
        under_M: which of the inner nodes each is a child of.
        broods: their children.
        order_M: where each node of the level is among what the broods give, one after the other; None for the same.
    """

    inner_P: Tensor | None
    parent_P: Tensor
    node_M: Tensor
    under_M: Tensor
    broods: tuple[Brood, ...]
    order_M: Tensor | None


class Growth(NamedTuple):
    """How a tree grows.

    Attributes:
        levels: one after the other.
        parent_N: each node's parent.
        upto_L: how many nodes lie no deeper than 0, 1, ....
    """

    levels: tuple[Level, ...]
    parent_N: Tensor
    upto_L: Tensor


def selected(value: Tensor, place: Tensor | None) -> Tensor:
    """Some entries of the second axis; all where the place is None."""
    return value if place is None else value.index_select(1, place)


@cache
def growth(parents: tuple[int, ...], device: torch.device) -> Growth:
    """How the tree with these parents, level by level, grows on a device.

    >>> growth((-1, -1, 0, 1), torch.device("cpu")).upto_L
    tensor([0, 2, 4])
    """

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    def some(values: list[int], of: int) -> Tensor | None:
        return None if values == list(range(of)) else tensor(values)

    depth, levels, fed = depths(parents), [], {-1: -1}
    children = {node: [n for n, parent in enumerate(parents) if parent == node] for node in range(-1, len(parents))}
    above = [-1]
    for number in range(1, max(depth, default=0) + 1):
        inner = [node for node in above if children[node]]
        parent_P = tensor([fed[parents[node]] if node >= 0 else -1 for node in inner])
        if number > 1:
            fed |= {node: len(fed) - 1 + index for index, node in enumerate(inner)}
        broods, drawn = [], []
        for count in sorted({len(children[node]) for node in inner}):
            place = [index for index, node in enumerate(inner) if len(children[node]) == count]
            born = [children[inner[index]] for index in place]
            drawn += [node for brood in born for node in brood]
            ranks = tuple(tensor([brood[rank] for brood in born]) for rank in range(count))
            broods.append(Brood(count, some(place, len(inner)), ranks))
        inner_P = some([above.index(node) for node in inner], len(above))
        above = sorted(drawn)
        order_M = some([drawn.index(node) for node in above], len(above))
        under_M = tensor([inner.index(parents[node]) for node in above])
        levels.append(Level(inner_P, parent_P, tensor(above), under_M, tuple(broods), order_M))
    upto = [sum(d <= limit for d in depth) for limit in range(max(depth, default=0) + 1)]
    return Growth(tuple(levels), tensor(list(parents)), tensor(upto))
