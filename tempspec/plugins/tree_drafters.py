"""The built-in drafters of token trees (floor 3).

A tree is lossless only if whether a drawn node is kept depends neither on its own token nor on later ones. Static
shapes have no choice, and dynamic ones draw nothing.

Axes: B batch, N nodes, M nodes of one level, V vocabulary, W width of a beam.
"""

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, get_args

import torch
from torch import Tensor

from tempspec.core.sampling import one_hot_log
from tempspec.core.siblings import SiblingLaws, cleaned
from tempspec.core.tree_shapes import Level, growth, selected
from tempspec.core.tree_verification import Siblings, is_drawn
from tempspec.core.trees import depths, level_parents
from tempspec.core.verification import precise
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
        self.most_children = max(map(self.parents.count, self.parents))

    def most_nodes(self, longest: int) -> int:
        """See `Drafter.most_nodes`."""
        return sum(depth <= longest for depth in self._depths)

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        model = _model(context, "StaticTree")
        deepest = min(context.longest, max(self._depths))
        if deepest == 0:
            return _nothing(context)
        shape = self.parents[: self.most_nodes(deepest)]
        plan = growth(shape, context.token_BT.device)
        logits_BMV = model.catch_up(context.token_BT, context.length_B)[:, None]
        tokens: list[Tensor] = []
        laws: list[Tensor] = []
        for level in plan.levels:
            if tokens:
                fed_BM = selected(tokens[-1], level.inner_P)
                logits_BMV = model.grow(fed_BM, level.parent_P.expand(len(fed_BM), -1))
            token_BM, logd_BMV = self._draw_level(context, level, logits_BMV)
            tokens.append(token_BM)
            laws.append(logd_BMV)
        token_BN = torch.cat(tokens, 1)
        length_B = plan.upto_L[context.limit_B.clamp(max=deepest)]
        chosen = self.siblings == "top"
        return Draft(token_BN, length_B, torch.cat(laws, 1), plan.parent_N.expand_as(token_BN), shape, chosen=chosen)

    def _draw_level(self, context: DraftContext, level: Level, logits_BMV: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the children of nodes whose logits these are: tokens and laws in the level's order."""
        logq_BMV = context.law(logits_BMV)
        if self.siblings == "independent":
            logd_BMV = logq_BMV.index_select(1, level.under_M)
            return context.draw(logd_BMV.exp(), level.node_M), logd_BMV
        score_BMV = _scores(logits_BMV, context.vocabulary)
        tokens, drawn = [], []
        for brood in level.broods:
            given = selected(logq_BMV, brood.place_P), selected(score_BMV, brood.place_P)
            laws = SiblingLaws(*given, brood.size, self.siblings)
            for rank, node_P in enumerate(brood.children):
                logd_BPV = laws.law(rank)
                if is_drawn(self.siblings, rank):
                    tokens.append(context.draw(logd_BPV.exp(), node_P))
                    laws.take(tokens[-1])
                else:
                    tokens.append(laws.chosen(rank))
                drawn.append(logd_BPV)
        return _in_order(tokens, level), cleaned(_in_order(drawn, level))


def _scores(logits_BMV: Tensor, vocabulary: int) -> Tensor:
    """What ranks tokens that are not drawn: finite logits over the target's ids."""
    finite_BMV = precise(logits_BMV).clamp(min=-1e30)
    lacking = max(0, vocabulary - logits_BMV.shape[-1])
    if lacking:
        finite_BMV = torch.nn.functional.pad(finite_BMV, (0, lacking), value=-1e30)
    return finite_BMV[..., :vocabulary]


def _in_order(ranks: list[Tensor], level: Level) -> Tensor:
    """What the broods of a level gave rank by rank, `[B, P, ...]` each, in the order of its nodes."""
    parts, first = [], 0
    for brood in level.broods:
        parts.append(torch.stack(ranks[first : first + brood.size], 2).flatten(1, 2))
        first += brood.size
    return selected(parts[0] if len(parts) == 1 else torch.cat(parts, 1), level.order_M)


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
        tokens, parents, scores = [], [], []
        inner_BM = fed_BM = torch.full_like(context.token_BT[:, :1], -1)
        above_BM = torch.zeros_like(inner_BM, dtype=torch.float64)
        start = count = 0
        for depth in range(1, deepest + 1):
            best = precise(logits_BMV[..., : context.vocabulary]).log_softmax(-1).topk(width)
            tokens.append(best.indices.flatten(1))
            parents.append(inner_BM[..., None].expand_as(best.indices).flatten(1))
            scores.append((above_BM[..., None] + best.values).flatten(1))
            if depth == deepest:
                break
            place_BM = scores[-1].topk(width, sorted=False).indices.sort(-1).values
            parent_fed_BM = fed_BM.gather(1, place_BM // width)
            inner_BM, above_BM = place_BM + start, scores[-1].gather(1, place_BM)
            fed_BM = torch.arange(count, count + width, device=place_BM.device).expand_as(place_BM)
            start, count = start + tokens[-1].shape[1], count + width
            logits_BMV = model.grow(tokens[-1].gather(1, place_BM), parent_fed_BM)
        drafted = torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(scores, 1)
        return self._pruned(context, *drafted, _beam_depths(width, deepest, inner_BM.device))

    def _pruned(
        self, context: DraftContext, token_BC: Tensor, parent_BC: Tensor, score_BC: Tensor, depth_C: Tensor
    ) -> Draft:
        """The best candidates in level order; a parent scores no less than its children and wins ties."""
        allowed_BC = depth_C <= context.limit_B[:, None]
        order_BC = score_BC.masked_fill(~allowed_BC, -torch.inf).sort(stable=True, dim=-1, descending=True).indices
        kept_BN = order_BC[:, : self.nodes].sort(-1).values
        place_BC = torch.zeros_like(token_BC).scatter_(
            1, kept_BN, torch.arange(kept_BN.shape[1], device=kept_BN.device).expand_as(kept_BN)
        )
        parent_BN = parent_BC.gather(1, kept_BN)
        parent_BN = torch.where(parent_BN < 0, -1, place_BC.gather(1, parent_BN.clamp(min=0)))
        token_BN = token_BC.gather(1, kept_BN)
        length_B = allowed_BC.gather(1, kept_BN).sum(-1)
        logd_BNV = one_hot_log(token_BN, context.vocabulary)
        return Draft(token_BN, length_B, logd_BNV, parent_BN, deepest=min(context.longest, self.depth), chosen=True)


@cache
def _beam_depths(width: int, deepest: int, device: torch.device) -> Tensor:
    """The depths of a beam's candidates, `[C]`: the root has `width` of them, each level after it `width` for each."""
    levels = [width] + [width * width] * (deepest - 1)
    count_D = torch.tensor(levels, dtype=torch.int64, device=device)
    return torch.arange(1, deepest + 1, device=device).repeat_interleave(count_D)
