"""Traversal verification of token trees with the fewest operations, without its randomness (floor 1).

All places of a level are worked on at once, and what their children leave of the laws there is kept: the law of the
token that follows is one of these. `tempspec.core.tree_verification` states the rule: see `tree_coins(joint=True)`.

Axes: B batch, N nodes, V vocabulary, K children of one node, X places with children of all rows, R those of one level,
Z the root, the nodes and an end of every row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core.children import Children
from tempspec.core.tree_descent import refused
from tempspec.core.verification import at_position, of_token, probabilities


class Ascent(NamedTuple):
    """What the accept decisions are made with, and what follows them.

    Attributes:
        coin_BN: the probability that each node is accepted when it is tried, float64; 0 after the row's length.
        place_BN: where in `left` each place's law is, the root's first, `[B, N+1]`; -1 where it has no children.
        left: what the children of a level's places leave of p, `[R, V]` for each level.
    """

    coin_BN: Tensor
    place_BN: Tensor
    left: tuple[Tensor, ...]


class _Tried(NamedTuple):
    """Who is tried at each place with children, level by level; what is not there is at the end of its row.

    Attributes:
        law_X: where in the target's laws of all rows the place's own is.
        home_X: the place's number among those of all rows, of N + 2 each.
        token_XK: the children's tokens.
        node_XK: their numbers among the nodes of all rows.
        goal_XK: the numbers of their places.
        nothing_XK: 0 for a child, infinite for none.
        chance_XK: d of the child's token, float64; infinite for 0.
    """

    law_X: Tensor
    home_X: Tensor
    token_XK: Tensor
    node_XK: Tensor
    goal_XK: Tensor
    nothing_XK: Tensor
    chance_XK: Tensor


def ascend(logp_BNV: Tensor, logd_BNV: Tensor, token_BN: Tensor, children: Children) -> Ascent:
    """The decisions of `tree_coins(joint=True)`.

    A place that is reached with `a` has the law `a p`, and the mass `1 - a` that no child takes from: what is left
    then follows as in recursive rejection.

    Args:
        logp_BNV: as in `tree_coins`.
        logd_BNV: as in `tree_coins`.
        token_BN: the nodes' tokens.
        children: who is whose child.
    """
    rows, nodes = token_BN.shape
    coin_Z = torch.zeros(rows * (nodes + 2), dtype=torch.float64, device=token_BN.device)
    place_Z = torch.full_like(coin_Z, -1, dtype=torch.int64)
    if not children.levels:
        return Ascent(_of_nodes(coin_Z, rows)[:, 1:], _of_nodes(place_Z, rows), ())
    tried, left, end = _tried(logd_BNV, token_BN, children), [], 0
    logp_XV, logd_XV = logp_BNV.flatten(0, 1), logd_BNV.flatten(0, 1)
    for depth, (width, count) in enumerate(children.levels):
        level, end = slice(end, end + rows * width), end + rows * width
        law_RV, home_R = probabilities(logp_XV.index_select(0, tried.law_X[level])), tried.home_X[level]
        spare_R1: Tensor | None = law_RV.new_zeros(len(law_RV), 1)
        if depth:
            reach_R1 = coin_Z.index_select(0, home_R)[:, None]
            law_RV = law_RV.mul_(reach_R1.to(law_RV.dtype))
            spare_R1 = (1.0 - reach_R1).to(law_RV.dtype)
        token_RK, node_RK, nothing_RK = (x[level, :count] for x in (tried.token_XK, tried.node_XK, tried.nothing_XK))
        own_RK, law_RV, spare_R1 = refused(law_RV, logd_XV, token_RK, node_RK, nothing_RK, spare_R1)
        assert spare_R1 is not None
        accept_RK = (own_RK.double() / tried.chance_XK[level, :count]).clamp(max=1.0)
        coin_Z.index_put_((tried.goal_XK[level, :count],), accept_RK)
        coin_Z.index_put_((home_R,), 1.0 - spare_R1.squeeze(1).double())
        left.append(law_RV)
    place_Z.index_put_((tried.home_X,), torch.arange(end, device=place_Z.device))
    return Ascent(_of_nodes(coin_Z, rows)[:, 1:], _of_nodes(place_Z, rows), tuple(left))


def _of_nodes(value_Z: Tensor, rows: int) -> Tensor:
    """Of each row what the root and the nodes have."""
    return value_Z.view(rows, -1)[:, :-1]


def _tried(logd_BNV: Tensor, token_BN: Tensor, children: Children) -> _Tried:
    """Who is tried where. Arguments as in `ascend`."""
    nodes = token_BN.shape[1]
    row_X, place_X = children.by_level()
    law_X = torch.add(place_X.clamp(min=0), row_X, alpha=nodes + 1)
    child_XK = children.node_BNK.flatten(0, 1).index_select(0, law_X)
    there_XK = (child_XK >= 0) & (place_X >= 0)[:, None]
    node_XK = torch.add(child_XK.clamp(min=0), row_X[:, None], alpha=nodes)
    goal_XK = torch.where(there_XK, child_XK + 1, nodes + 1)
    home_X = torch.where(there_XK[:, 0], place_X, nodes + 1)
    chance_XK = of_token(logd_BNV, token_BN).double().exp().take(node_XK)
    return _Tried(
        law_X,
        torch.add(home_X, row_X, alpha=nodes + 2),
        token_BN.take(node_XK),
        node_XK,
        torch.add(goal_XK, row_X[:, None], alpha=nodes + 2),
        torch.where(there_XK, 0.0, torch.inf),
        chance_XK.masked_fill(chance_XK == 0, torch.inf),
    )


def following(logp_BNV: Tensor, node_B: Tensor, ascent: Ascent) -> Tensor:
    """The law of the token that follows when `node_B` is the last to be accepted, not normalised, `[B, V]`.

    Args:
        logp_BNV: as in `ascend`.
        node_B: the last accepted node of each row, -1 for none.
        ascent: what `ascend` returned.
    """
    weight_BV = probabilities(at_position(logp_BNV, node_B + 1))
    place_B1, first = ascent.place_BN.gather(1, node_B[:, None] + 1), 0
    for law_RV in ascent.left:
        at_B = (place_B1[:, 0] - first).clamp(0, len(law_RV) - 1)
        weight_BV = torch.where(place_B1 >= first, law_RV.index_select(0, at_B), weight_BV)
        first += len(law_RV)
    return weight_BV
