"""The built-in drafters of token trees (floor 3).

A tree is lossless only if whether a drawn node is kept depends neither on its own token nor on later ones. Static
shapes have no choice, and dynamic ones draw nothing.

Axes: B batch, N nodes, M nodes of one level, V vocabulary, W width of a beam.
"""

from collections.abc import Sequence
from typing import ClassVar, get_args

import torch
from torch import Tensor

from tempspec.core.sampling import one_hot_log
from tempspec.core.tree_verification import Siblings, is_drawn, sibling_law
from tempspec.core.trees import ancestry, depths, level_parents
from tempspec.errors import UserError
from tempspec.interfaces import Draft, DraftContext, Drafter, StepModel

__all__ = ["DynamicTree", "StaticTree"]


def _model(context: DraftContext, name: str) -> StepModel:
    if context.model is None:
        raise ValueError(f"{name} needs a draft model, got none: give the context a model")
    return context.model


def _nothing(context: DraftContext) -> Draft:
    """A tree of no nodes."""
    token_BN = context.token_BT[:, :0]
    law_BNV = torch.zeros(len(token_BN), 0, context.vocabulary, dtype=torch.float32, device=token_BN.device)
    return Draft(token_BN, torch.zeros_like(context.length_B), law_BNV, token_BN)


class StaticTree(Drafter):
    """Drafts a tree of one shape, level by level: one call of the draft model per level.

    `levels: [4, 1, 1]` are four parallel paths of three tokens, `levels: [2, 2]` a binary tree, `parents` any shape.
    The draft length limits how deep the tree may go, nothing else: a tree is cut after a whole level.

    Args:
        levels: how many children each node of a level gets, the root first; each at least 1.
        parents: the shape node by node instead: each node's parent, -1 for the root, level by level.
        siblings: how the children of one node are drawn: `distinct` (without replacement), `independent`, `top` (the
            most likely, nothing is drawn) or `greedy` (all but one the most likely; SpecHub at two children).
    """

    needs_model: ClassVar[bool] = True
    drafts_with = frozenset({"language model", "head"})
    source: ClassVar[str] = (
        "Miao et al. 2023, SpecInfer, arXiv 2305.09781; Chen et al. 2024, Sequoia, arXiv 2402.12374; "
        "Jeon et al. 2024, RSD, arXiv 2402.14160"
    )

    def __init__(
        self, levels: list[int] | None = None, parents: list[int] | None = None, siblings: Siblings = "distinct"
    ) -> None:
        if siblings not in get_args(Siblings):
            raise UserError(f"StaticTree: siblings must be one of {', '.join(get_args(Siblings))}, got {siblings!r}")
        if levels is not None and parents is not None:
            raise UserError("StaticTree: expected levels or parents, got both: leave one out")
        self.parents = _shape([2, 2] if levels is None else levels) if parents is None else _checked(parents)
        self.siblings: Siblings = siblings
        self._depths = depths(self.parents)
        self._children = {
            node: [child for child, parent in enumerate(self.parents) if parent == node]
            for node in range(-1, len(self.parents))
        }
        self.most_children = max(map(len, self._children.values()))

    def most_nodes(self, longest: int) -> int:
        """See `Drafter.most_nodes`."""
        return sum(depth <= longest for depth in self._depths)

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        model = _model(context, "StaticTree")
        deepest = min(context.longest, max(self._depths))
        if deepest == 0:
            return _nothing(context)
        nodes = self.most_nodes(deepest)
        token_BN = context.token_BT.new_zeros(len(context.token_BT), nodes)
        logits_BMV = model.catch_up(context.token_BT, context.length_B)[:, None]
        laws: dict[int, Tensor] = {}
        fed = {-1: -1}  # the number that the model knows a node by
        inner = [-1]
        for depth in range(1, deepest + 1):
            self._draw_level(context, inner, logits_BMV, token_BN, laws)
            inner = [node for node in range(nodes) if self._depths[node] == depth and self._children[node]]
            if depth == deepest or not inner:
                break
            parent_M = torch.tensor(
                [fed[self.parents[node]] for node in inner], dtype=torch.int64, device=token_BN.device
            )
            fed |= {node: len(fed) - 1 + index for index, node in enumerate(inner)}
            logits_BMV = model.grow(token_BN[:, inner], parent_M.expand(len(token_BN), -1))
        parent_BN = torch.tensor(self.parents[:nodes], dtype=torch.int64, device=token_BN.device).expand_as(token_BN)
        return Draft(token_BN, self._lengths(context), torch.stack([laws[node] for node in range(nodes)], 1), parent_BN)

    def _draw_level(
        self, context: DraftContext, inner: Sequence[int], logits_BMV: Tensor, token_BN: Tensor, laws: dict[int, Tensor]
    ) -> None:
        """Draw the children of the nodes `inner`, whose logits these are; writes `token_BN` and `laws`."""
        logq_BMV = context.law(logits_BMV)
        lacking = max(0, context.vocabulary - logits_BMV.shape[-1])
        score_BMV = torch.nn.functional.pad(logits_BMV.to(logq_BMV.dtype).clamp(min=-1e30), (0, lacking), value=-1e30)
        score_BMV = score_BMV[..., : context.vocabulary]
        for count in sorted({len(self._children[node]) for node in inner}):
            place = [index for index, node in enumerate(inner) if len(self._children[node]) == count]
            logq_BPV, score_BPV = logq_BMV[:, place], score_BMV[:, place]
            taken_BPV = torch.zeros_like(logq_BPV, dtype=torch.bool)
            for rank in range(count):
                nodes = [self._children[inner[index]][rank] for index in place]
                logd_BPV = sibling_law(logq_BPV, score_BPV, taken_BPV, rank, count, self.siblings)
                if is_drawn(self.siblings, rank):
                    token_BP = context.draw(
                        logd_BPV.exp(), torch.tensor(nodes, dtype=torch.int64, device=token_BN.device)
                    )
                else:
                    token_BP = logd_BPV.argmax(-1)
                token_BN[:, nodes] = token_BP
                laws.update(zip(nodes, logd_BPV.unbind(1), strict=True))
                taken_BPV = taken_BPV.scatter(-1, token_BP[..., None], True)

    def _lengths(self, context: DraftContext) -> Tensor:
        """The nodes that each row's limit leaves, `[B]`."""
        upto = [self.most_nodes(limit) for limit in range(context.longest + 1)]
        return torch.tensor(upto, dtype=torch.int64, device=context.limit_B.device)[context.limit_B]


def _shape(levels: Sequence[int]) -> tuple[int, ...]:
    """The parents of a tree given level by level."""
    if not levels or min(levels) < 1:
        raise UserError(f"StaticTree: levels must hold numbers of children, at least 1 each, got {list(levels)}")
    return level_parents(levels)


def _checked(parents: Sequence[int]) -> tuple[int, ...]:
    """The parents, once they have proved to be a tree in level order."""
    fine = len(parents) > 0 and all(-1 <= parent < node for node, parent in enumerate(parents))
    if not fine or list(depths(parents)) != sorted(depths(parents)):
        raise UserError(
            f"StaticTree: parents must name an earlier node or -1 for each node, level by level, got {list(parents)}; "
            "e.g. [-1, -1, 0, 0, 1]"
        )
    return tuple(parents)


class DynamicTree(Drafter):
    """Grows a tree where the draft is confident: a beam over its likeliest paths, of which the best nodes are kept.

    EAGLE-2's tree: a path's score is its probability under the draft at temperature 1. Each level feeds the `width`
    best nodes of the last one and takes the `width` likeliest tokens after each; the `nodes` best of all are verified.
    Nothing is drawn, so keeping nodes for their own score leaves the text alone; the price is that a
    deterministic child is accepted with p(x) only. The draft temperature changes nothing.

    Args:
        width: nodes that a level feeds, and children of each; at least 1.
        depth: levels, at least 1; the draft length may allow fewer.
        nodes: tokens verified in a round, at least 1.
    """

    needs_model: ClassVar[bool] = True
    drafts_with = frozenset({"language model", "head"})
    source: ClassVar[str] = "Li et al. 2024, EAGLE-2, arXiv 2406.16858"
    siblings: Siblings | None = "top"

    def __init__(self, width: int = 4, depth: int = 4, nodes: int = 16) -> None:
        for name, value in (("width", width), ("depth", depth), ("nodes", nodes)):
            if value < 1:
                raise UserError(f"DynamicTree: {name} must be 1 or more, got {value}")
        self.width = width
        self.depth = depth
        self.nodes = nodes

    def most_nodes(self, longest: int) -> int:
        """See `Drafter.most_nodes`; the fed nodes need room in the draft's cache too."""
        return max(self.nodes, self.width * min(self.depth, longest)) if longest else 0

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        model = _model(context, "DynamicTree")
        deepest = min(context.longest, self.depth)
        if deepest == 0:
            return _nothing(context)
        width = min(self.width, context.vocabulary)
        logits_BMV = model.catch_up(context.token_BT, context.length_B)[:, None]
        # Candidates: token, parent (a candidate's number, -1 the root) and score; those fed are kept by their number.
        token_BC, parent_BC = context.token_BT[:, :0], context.token_BT[:, :0]
        score_BC = logits_BMV.new_zeros(len(token_BC), 0, dtype=torch.float64)
        inner_BM, fed_BM = token_BC.new_full((len(token_BC), 1), -1), token_BC.new_full((len(token_BC), 1), -1)
        above_BM = score_BC.new_zeros(len(token_BC), 1)
        count = 0
        for depth in range(1, deepest + 1):
            best = logits_BMV[..., : context.vocabulary].double().log_softmax(-1).topk(width)
            start = token_BC.shape[1]
            token_BC = torch.cat([token_BC, best.indices.flatten(1)], 1)
            parent_BC = torch.cat([parent_BC, inner_BM.repeat_interleave(width, 1)], 1)
            score_BC = torch.cat([score_BC, (above_BM[..., None] + best.values).flatten(1)], 1)
            if depth == deepest:
                break
            top = score_BC[:, start:].topk(min(width, score_BC.shape[1] - start), sorted=False)
            place_BM = top.indices.sort(-1).values
            parent_fed_BM = fed_BM.gather(1, place_BM // width)
            inner_BM, above_BM = place_BM + start, score_BC[:, start:].gather(1, place_BM)
            fed_BM = (count + torch.arange(place_BM.shape[1], device=place_BM.device)).expand_as(place_BM)
            count += place_BM.shape[1]
            logits_BMV = model.grow(token_BC.gather(1, inner_BM), parent_fed_BM)
        return self._pruned(context, token_BC, parent_BC, score_BC)

    def _pruned(self, context: DraftContext, token_BC: Tensor, parent_BC: Tensor, score_BC: Tensor) -> Draft:
        """The best candidates in level order; a parent scores no less than its children and wins ties."""
        allowed_BC = ancestry(parent_BC).sum(-1) <= context.limit_B[:, None]
        order_BC = score_BC.masked_fill(~allowed_BC, -torch.inf).sort(stable=True, dim=-1, descending=True).indices
        kept_BN = order_BC[:, : self.nodes].sort(-1).values
        place_BC = torch.zeros_like(token_BC).scatter_(
            1, kept_BN, torch.arange(kept_BN.shape[1], device=kept_BN.device).expand_as(kept_BN)
        )
        parent_BN = parent_BC.gather(1, kept_BN)
        parent_BN = torch.where(parent_BN < 0, -1, place_BC.gather(1, parent_BN.clamp(min=0)))
        token_BN = token_BC.gather(1, kept_BN)
        length_B = allowed_BC.gather(1, kept_BN).sum(-1)
        return Draft(token_BN, length_B, one_hot_log(token_BN, context.vocabulary), parent_BN)
