"""Who is whose child or sibling in token trees: tables that a verification looks up (floor 1).

Of trees whose shapes only the device knows the host reads them once; of one shape for all rows it knows them.

Axes: B batch, N nodes, K children of one node, D depth, W places of one depth, X entries of a table or places of
all rows.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core.trees import ancestry, elder, postorder
from tempspec.core.verification import real


@dataclass(frozen=True, slots=True)
class Children:
    """The real children of every place of a tree, the root's first, and the places that have any, by depth.

    Attributes:
        node_BNK: the k-th child of each place in the order they were drawn, -1 where there is none, `[B, N+1, K]`.
        most: the most children that any row has at each place, on the host.
        place_BDW: the places with children at each depth, the root's 0, -1 where a row has fewer, `[B, N+1, W]`.
        levels: of every depth that has such places how many, and the most children of any, on the host.
        on_BNN: the tree's `trees.ancestry`.
    """

    node_BNK: Tensor
    most: list[int]
    place_BDW: Tensor
    levels: list[tuple[int, int]]
    on_BNN: Tensor

    @classmethod
    def of(cls, parent_BN: Tensor, length_B: Tensor, on_BNN: Tensor | None = None) -> "Children":
        """Of trees whose first `length_B` nodes are real; reads the shape on the host, once.

        Args:
            parent_BN: the nodes' parents.
            length_B: how many are real.
            on_BNN: the trees' `trees.ancestry`, where it is known.
        """
        nodes, real_BN = parent_BN.shape[1], real(parent_BN, length_B)
        place_N = torch.arange(nodes + 1, device=parent_BN.device)
        on_BNN = ancestry(parent_BN) if on_BNN is None else on_BNN
        depth_BN = torch.nn.functional.pad(on_BNN.sum(-1), (1, 0))
        count_BN = torch.zeros_like(depth_BN).scatter_add_(1, parent_BN + 1, real_BN.long())
        at_BND = (depth_BN[..., None] == place_N) & (count_BN > 0)[..., None]
        counts_BND = at_BND * count_BN[..., None]
        most, widths, counts = torch.stack([count_BN.amax(0), at_BND.sum(1).amax(0), counts_BND.amax((0, 1))]).tolist()
        among_BN = elder(parent_BN).sum(-1)
        before_BN = at_BND.cumsum(1).gather(2, depth_BN[..., None]).squeeze(-1) - 1
        return cls(
            _table(parent_BN + 1, among_BN, real_BN, nodes + 1, max(most)),
            most,
            _table(depth_BN, before_BN, count_BN > 0, nodes + 1, max(widths)),
            [(width, count) for width, count in zip(widths, counts, strict=True) if width],
            on_BNN,
        )

    @classmethod
    def of_shape(cls, parents: tuple[int, ...], length_B: Tensor) -> "Children":
        """Of trees of one shape, which the host knows, whose first `length_B` nodes are real."""
        whole = _children_of(parents, length_B.device)
        node_BNK = torch.where(whole.node_BNK < length_B[:, None, None], whole.node_BNK, -1)
        rows = len(length_B)
        return cls(
            node_BNK, whole.most, whole.place_BDW.expand(rows, -1, -1), whole.levels, whole.on_BNN.expand(rows, -1, -1)
        )

    def of_rows(self, row_B: Tensor) -> "Children":
        """Those of some rows; what the host knows stays that of all."""
        return Children(self.node_BNK[row_B], self.most, self.place_BDW[row_B], self.levels, self.on_BNN[row_B])

    def by_level(self) -> tuple[Tensor, Tensor]:
        """The places with children of all rows, level by level: whose, and which, -1 where a row has fewer, `[X]`."""
        widths = tuple(width for width, _ in self.levels)
        place_X = torch.cat([self.place_BDW[:, depth, :width].flatten() for depth, width in enumerate(widths)])
        return _rows_by_level(widths, len(self.place_BDW), place_X.device), place_X

    def at(self, node_B: Tensor) -> Tensor:
        """The children of one node of each row, -1 for the root: `[B, K]`."""
        at_B1K = (node_B + 1)[:, None, None].expand(-1, 1, self.node_BNK.shape[-1])
        return self.node_BNK.gather(1, at_B1K).squeeze(1)

    def of_places(self, place_BW: Tensor) -> Tensor:
        """The children of some places of each row, 0 the root, `[B, W, K]`; none where the place is -1."""
        at_BWK = place_BW.clamp(min=0)[..., None].expand(*place_BW.shape, self.node_BNK.shape[-1])
        return self.node_BNK.gather(1, at_BWK).masked_fill(place_BW[..., None] < 0, -1)


class Order(NamedTuple):
    """In which order the nodes of a tree come, for a device that knows its shape.

    Attributes:
        elder_BNN: `trees.elder`.
        postorder_BN: `trees.postorder`.
    """

    elder_BNN: Tensor
    postorder_BN: Tensor

    @classmethod
    def of_shape(cls, parents: tuple[int, ...], rows: int, device: torch.device) -> "Order":
        """Of so many trees of one shape."""
        return cls(*(table.expand(rows, *table.shape[1:]) for table in _order_of(parents, device)))


@cache
def _order_of(parents: tuple[int, ...], device: torch.device) -> Order:
    """Of a tree of this shape, as one row."""
    parent_1N = torch.tensor([parents], dtype=torch.int64, device=device)
    return Order(elder(parent_1N), postorder(parent_1N))


@lru_cache(256)
def _rows_by_level(widths: tuple[int, ...], rows: int, device: torch.device) -> Tensor:
    """The rows of so many places each, for one width after the other."""
    row_B = torch.arange(rows, device=device)
    return torch.cat([row_B.repeat_interleave(width) for width in widths])


@cache
def _children_of(parents: tuple[int, ...], device: torch.device) -> Children:
    """Of a whole tree of this shape, as one row."""
    parent_1N = torch.tensor([parents], dtype=torch.int64, device=device)
    return Children.of(parent_1N, torch.tensor([len(parents)], dtype=torch.int64, device=device))


def _table(row_BN: Tensor, column_BN: Tensor, there_BN: Tensor, rows: int, columns: int) -> Tensor:
    """The numbers of some entries, each at its row and column, `[B, rows, columns]`; -1 where there is none."""
    width = columns + 1  # the last column takes what is not there, and is cut off
    place_BN = row_BN * width + column_BN.masked_fill(~there_BN, columns)
    number_BN = torch.arange(row_BN.shape[1], device=row_BN.device).expand_as(row_BN)
    table_BX = row_BN.new_full((len(row_BN), rows * width), -1).scatter_(1, place_BN, number_BN)
    return table_BX.view(len(row_BN), rows, width)[..., :columns]
